//! The programs that follow TCP connections.

use aya::programs::FExit;
use aya::{Btf, Ebpf};
use everflame_agent_common::stats::Program;

use super::bpf::{BpfError, refused, tracing_program};
use super::stats::ProgramStats;
use crate::kernel::TcpHooks;

/// Which TCP connections are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Requests of either direction that are sampled in a second on each CPU, at most: where there are more, a
    /// share of them is chosen, which stands for all.
    pub samples_per_second: u32,
    /// The same of connections that are opened, of those that are accepted, and of segments that are sent again
    /// and resets.
    pub connections_per_second: u32,
    /// Where the kernel does not show the end of its function that accepts connections, look at the end of each
    /// system call instead. That costs every one of them some 50 ns.
    pub sees_calls: bool,
}

impl TcpConfig {
    /// Many: somebody has asked for them. Connections are all handed over, so that counts are exact.
    pub fn for_recording() -> Self {
        Self { samples_per_second: 5000, connections_per_second: u32::MAX, sees_calls: true }
    }
}

impl TcpConfig {
    /// For always: at most so many in a second on each CPU.
    pub const fn of_samples(per_second: u32) -> Self {
        Self {
            samples_per_second: per_second,
            connections_per_second: per_second,
            sees_calls: false,
        }
    }
}

impl Default for TcpConfig {
    /// See docs/benchmarks.md for what they cost.
    fn default() -> Self {
        Self::of_samples(20)
    }
}

/// What these programs have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpStats {
    /// When connections are opened.
    pub opened: ProgramStats,
    /// When they are there, and when they end.
    pub state: ProgramStats,
    /// When something is sent.
    pub sent: ProgramStats,
    /// When something is received.
    pub received: ProgramStats,
    /// When something is sent again, and of resets.
    pub trouble: ProgramStats,
    /// When connections are accepted.
    pub accepted: ProgramStats,
}

impl TcpStats {
    /// All of them.
    pub fn programs(&self) -> [(Program, &ProgramStats); 6] {
        [
            (Program::TcpOpened, &self.opened),
            (Program::TcpState, &self.state),
            (Program::TcpSent, &self.sent),
            (Program::TcpReceived, &self.received),
            (Program::TcpTrouble, &self.trouble),
            (Program::TcpAccepted, &self.accepted),
        ]
    }

    fn sum(&self, part: impl Fn(&ProgramStats) -> u64) -> u64 {
        self.programs().iter().map(|(_, stats)| part(stats)).sum()
    }

    /// Samples that found no room.
    pub fn lost(&self) -> u64 {
        self.sum(ProgramStats::lost)
    }

    /// Samples for which there was no scratch memory.
    pub fn no_scratch(&self) -> u64 {
        self.sum(|stats| stats.no_scratch)
    }

    /// Times that a connection could not be followed, as there were too many.
    pub fn untracked(&self) -> u64 {
        self.sum(|stats| stats.untracked)
    }

    /// Samples that stand for others as well, as there were too many.
    pub fn thinned(&self) -> u64 {
        self.sum(|stats| stats.thinned)
    }

    /// Stacks that should have been copied, beyond what is allowed a second.
    pub fn stack_copies_refused(&self) -> u64 {
        self.sum(|stats| stats.stack_copies_refused)
    }
}

/// (program, tracepoint) of those that nothing is seen without, in the order in which they are attached: what
/// begins to follow connections comes last.
const PROGRAMS: [(&str, &str); 7] = [
    ("tcp_destroyed", "tcp_destroy_sock"),
    ("tcp_retransmit_synack", "tcp_retransmit_synack"),
    ("tcp_reset_sent", "tcp_send_reset"),
    ("tcp_reset_received", "tcp_receive_reset"),
    ("tcp_received", "tcp_rcv_space_adjust"),
    ("tcp_state", "inet_sock_set_state"),
    ("tcp_opened", "inet_sock_set_state"),
];

/// What is sent again.
const RETRANSMIT: &str = "tcp_retransmit";
const RETRANSMIT_WITH_RESULT: &str = "tcp_retransmit_with_result";
const RETRANSMIT_TRACEPOINT: &str = "tcp_retransmit_skb";

/// What is sent.
const SENT: &str = "tcp_sent";
const SENT_TRACEPOINT: &str = "sock_send_length";
const SENT_BY_FUNCTION: &str = "tcp_sent_by_function";
const SENT_FUNCTION: &str = "tcp_sendmsg";

/// What is accepted.
const ACCEPTED: &str = "tcp_accepted";
const ACCEPTED_BY_TWO: &str = "tcp_accepted_by_two";
const ACCEPTED_FUNCTION: &str = "inet_csk_accept";
const ACCEPTED_BY_CALL: &str = "tcp_accepted_by_call";
const CALL_TRACEPOINT: &str = "sys_exit";

/// The programs, loaded.
pub(super) struct TcpPrograms {
    hooks: TcpHooks,
    types: Btf,
    sent: Result<(), BpfError>,
    accepted: Result<(), BpfError>,
}

impl TcpPrograms {
    /// Loads what nothing is seen without, and attaches nothing yet.
    ///
    /// # Errors
    /// Where the kernel refuses one of these.
    pub(super) fn load(ebpf: &mut Ebpf, hooks: TcpHooks) -> Result<Self, BpfError> {
        let types = Btf::from_sys_fs().map_err(|source| BpfError::Types { source })?;
        for (name, tracepoint) in PROGRAMS {
            tracing_program(ebpf, name)?.load(tracepoint, &types).map_err(refused(name))?;
        }
        Ok(Self { hooks, types, sent: Ok(()), accepted: Ok(()) })
    }

    /// Attaches them.
    pub(super) fn start(&mut self, ebpf: &mut Ebpf) -> Result<(), BpfError> {
        self.accepted = self.see_accepted(ebpf);
        self.sent = if self.hooks.has_send_length {
            attach_tracepoint(ebpf, SENT, SENT_TRACEPOINT, &self.types)
        } else {
            attach_exit(ebpf, SENT_BY_FUNCTION, SENT_FUNCTION, &self.types)
        };
        let retransmit =
            if self.hooks.retransmit_has_result { RETRANSMIT_WITH_RESULT } else { RETRANSMIT };
        attach_tracepoint(ebpf, retransmit, RETRANSMIT_TRACEPOINT, &self.types)?;
        for (name, _) in PROGRAMS {
            tracing_program(ebpf, name)?.attach().map_err(refused(name))?;
        }
        Ok(())
    }

    /// By the end of the kernel's function, which not all kernels let programs see.
    fn see_accepted(&self, ebpf: &mut Ebpf) -> Result<(), BpfError> {
        let program = match self.hooks.accept_arguments {
            Some(4) => ACCEPTED,
            Some(2) => ACCEPTED_BY_TWO,
            _ => return Err(BpfError::Missing { name: ACCEPTED_FUNCTION }),
        };
        match attach_exit(ebpf, program, ACCEPTED_FUNCTION, &self.types) {
            Err(_) if self.hooks.sees_calls => {
                attach_tracepoint(ebpf, ACCEPTED_BY_CALL, CALL_TRACEPOINT, &self.types)
            }
            result => result,
        }
    }

    /// Programs that the agent does without, and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = (Program, &BpfError)> {
        let sent = self.sent.as_ref().err().map(|error| (Program::TcpSent, error));
        let accepted = self.accepted.as_ref().err().map(|error| (Program::TcpAccepted, error));
        sent.into_iter().chain(accepted)
    }
}

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
    types: &Btf,
) -> Result<(), BpfError> {
    let program = tracing_program(ebpf, name)?;
    program.load(tracepoint, types).map_err(refused(name))?;
    program.attach().map_err(refused(name))?;
    Ok(())
}

fn attach_exit(
    ebpf: &mut Ebpf,
    name: &'static str,
    function: &str,
    types: &Btf,
) -> Result<(), BpfError> {
    let program: &mut FExit = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(BpfError::Missing { name })?;
    program.load(function, types).map_err(refused(name))?;
    program.attach().map_err(refused(name))?;
    Ok(())
}
