//! What is lost where the kernel refuses one of the programs, said in one line of the log.
//!
//! The cause in full, with what the verifier says of each instruction, is for those who log
//! `debug`.

use std::error::Error;

use everflame_agent_common::stats::Program;
use tracing::{debug, warn};

use crate::kernel::Feature;

/// Says what is lost without this program.
pub(super) fn warn(program: Program, error: &(dyn Error + 'static)) {
    warn!(program = program.name(), reason = brief(error), "{}", without(program));
    debug!(program = program.name(), error, "refused");
}

/// What becomes of profiles.
fn without(program: Program) -> &'static str {
    match program {
        Program::Cpu => Feature::PerfEventPrograms.without(),
        Program::Exec => "stacks end early in a program's first moments",
        // One is nothing without the other.
        Program::NewTask | Program::SwitchOut | Program::SwitchIn | Program::Waiting => {
            "waits and locks are not followed"
        }
        Program::Waking => Feature::SchedWaking.without(),
        Program::LockBegin | Program::LockEnd => Feature::LockContention.without(),
        Program::Growth => "growth of memory is not seen",
        Program::Allocation => "there are no windows on allocators",
        Program::Allocated | Program::Freed => "live heaps are not seen",
        Program::BlockStart | Program::BlockIssue | Program::BlockDone => {
            "requests to disks are not seen"
        }
        Program::Sync => "how long files take to become durable is not seen",
        Program::TcpOpened | Program::TcpState | Program::TcpReceived | Program::TcpTrouble => {
            "TCP connections are not seen"
        }
        Program::TcpSent => "requests on TCP connections are not seen",
        Program::TcpAccepted => "how long TCP connections wait to be accepted is not seen",
        Program::OomVictim => "what runs out of memory is not shown before its window ends",
    }
}

/// An error and its causes in one line.
pub(crate) fn brief(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        let line = line.split(". Verifier output:").next().unwrap_or(line).trim_end();
        // Some say what their cause is themselves.
        if !parts.last().is_some_and(|last| last.ends_with(line)) {
            parts.push(line.to_owned());
        }
        cause = error.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use thiserror::Error;

    use super::*;

    /// As aya's.
    #[derive(Debug, Error)]
    #[error("the BPF_PROG_LOAD syscall returned {io_error}. Verifier output: {log}")]
    struct Refused {
        #[source]
        io_error: io::Error,
        log: &'static str,
    }

    #[derive(Debug, Error)]
    #[error("the kernel refuses the BPF program")]
    struct Program(#[source] Refused);

    #[test]
    fn reason_of_a_refusal_is_one_line_without_what_the_verifier_says() {
        let io_error = io::Error::from_raw_os_error(libc::EACCES);
        let log = "0: R1=ctx()\n1: invalid bpf_context access";
        assert_eq!(
            brief(&Program(Refused { io_error, log })),
            "the kernel refuses the BPF program: the BPF_PROG_LOAD syscall returned Permission \
             denied (os error 13)"
        );
    }
}
