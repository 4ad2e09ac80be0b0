//! What programs have counted, and what was lost on the way.

use everflame_agent_common::stats::Program;

use super::block::BlockStats;
use super::live::{AttachStats, LiveAttachments};
use super::tcp::TcpStats;
use super::waits::WaitStats;
use super::{CollectError, Collector};
use crate::process::ObjectStats;
use crate::unwind::UnwindStats;

/// The value of each counter of one program, summed over CPUs, and lost samples by CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramStats {
    /// Times it was entered.
    pub runs: u64,
    /// Runs that were timed.
    pub timed_runs: u64,
    /// Time spent in timed runs, in nanoseconds.
    pub timed_ns: u64,
    /// Samples handed over.
    pub samples: u64,
    /// Samples lost because the ring buffer was full, by CPU.
    pub ring_full: Vec<u64>,
    /// Left early: the idle task.
    pub idle: u64,
    /// Left early: not the process that was asked for.
    pub filtered: u64,
    /// Left early for want of scratch memory.
    pub no_scratch: u64,
    /// Stacks that were copied to be walked by the agent.
    pub stack_copies: u64,
    /// Stacks that would have been copied, beyond what is allowed a second.
    pub stack_copies_refused: u64,
    /// Threads that could not be followed.
    pub untracked: u64,
    /// Samples that stand for more than they would if there were fewer.
    pub thinned: u64,
}

impl ProgramStats {
    /// What all runs cost, estimated from those that were timed, in nanoseconds.
    pub fn estimated_run_time_ns(&self) -> u64 {
        if self.timed_runs == 0 {
            return 0;
        }
        let total = u128::from(self.timed_ns) * u128::from(self.runs) / u128::from(self.timed_runs);
        u64::try_from(total).unwrap_or(u64::MAX)
    }

    /// Samples lost on all CPUs.
    pub fn lost(&self) -> u64 {
        self.ring_full.iter().sum::<u64>() + self.no_scratch
    }
}

/// What was lost or could not be understood, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CollectStats {
    /// The CPU sampler's counters.
    pub cpu: ProgramStats,
    /// Those of the program that watches for exec.
    pub exec: ProgramStats,
    /// Those of the programs that follow waits.
    pub waits: WaitStats,
    /// Those of the program that samples growth of memory.
    pub growth: ProgramStats,
    /// Those of the program that samples what is asked of allocators.
    pub allocation: ProgramStats,
    /// Those of the program that samples objects on live heaps.
    pub allocated: ProgramStats,
    /// Those of the program that notes when these are freed.
    pub freed: ProgramStats,
    /// Those of the programs that follow requests to disks.
    pub block: BlockStats,
    /// Those of the programs that follow TCP connections.
    pub tcp: TcpStats,
    /// Those of the program that tells whom the kernel ends for want of memory.
    pub oom_victim: ProgramStats,
    /// Runs of programs that the kernel has left out, as they were under way on that CPU already: by
    /// name, of those that have any. What they would have seen is missing.
    pub missed_runs: Vec<(String, u64)>,
    /// Which live heaps are seen.
    pub attached: AttachStats,
    /// Process records that the kernel dropped.
    pub sideband_lost: u64,
    /// Records of either kind that could not be parsed.
    pub unreadable: u64,
    /// Times at which the clock went backwards between two reads.
    pub clock_backwards: u64,
    /// Mapped files.
    pub objects: ObjectStats,
    /// Kernel memory of BPF maps, those of unwind tables among them.
    pub bpf_memory_bytes: u64,
    /// Process records that the unwinder had no room for.
    pub unwinder_missed: u64,
    /// How stacks are walked.
    pub unwind: UnwindStats,
}

impl CollectStats {
    /// Samples that the ring buffer had no room for.
    pub fn lost(&self) -> u64 {
        self.cpu.lost()
            + self.waits.lost()
            + self.growth.lost()
            + self.allocation.lost()
            + self.allocated.lost()
            + self.freed.lost()
            + self.block.lost()
            + self.tcp.lost()
    }
}

impl Collector {
    /// What was lost and what it cost.
    pub fn stats(&self) -> Result<CollectStats, CollectError> {
        let unwind = self.unwinder.stats();
        Ok(CollectStats {
            cpu: self.bpf.program_stats(Program::Cpu)?,
            exec: self.bpf.program_stats(Program::Exec)?,
            waits: WaitStats {
                new_task: self.bpf.program_stats(Program::NewTask)?,
                switch_out: self.bpf.program_stats(Program::SwitchOut)?,
                switch_in: self.bpf.program_stats(Program::SwitchIn)?,
                waking: self.bpf.program_stats(Program::Waking)?,
                lock_begin: self.bpf.program_stats(Program::LockBegin)?,
                lock_end: self.bpf.program_stats(Program::LockEnd)?,
                waiting: self.bpf.program_stats(Program::Waiting)?,
                waiting_errors: self.waiting_errors,
            },
            growth: self.bpf.program_stats(Program::Growth)?,
            allocation: self.bpf.program_stats(Program::Allocation)?,
            allocated: self.bpf.program_stats(Program::Allocated)?,
            freed: self.bpf.program_stats(Program::Freed)?,
            block: BlockStats {
                start: self.bpf.program_stats(Program::BlockStart)?,
                issue: self.bpf.program_stats(Program::BlockIssue)?,
                done: self.bpf.program_stats(Program::BlockDone)?,
                sync: self.bpf.program_stats(Program::Sync)?,
            },
            tcp: TcpStats {
                opened: self.bpf.program_stats(Program::TcpOpened)?,
                state: self.bpf.program_stats(Program::TcpState)?,
                sent: self.bpf.program_stats(Program::TcpSent)?,
                received: self.bpf.program_stats(Program::TcpReceived)?,
                trouble: self.bpf.program_stats(Program::TcpTrouble)?,
                accepted: self.bpf.program_stats(Program::TcpAccepted)?,
            },
            oom_victim: self.bpf.program_stats(Program::OomVictim)?,
            missed_runs: self.bpf.missed_runs(),
            attached: self.live.as_ref().map(LiveAttachments::stats).unwrap_or_default(),
            sideband_lost: self.sideband.lost(),
            unreadable: self.unreadable + self.sideband.unreadable(),
            clock_backwards: self.clock_backwards,
            objects: self.objects.stats(),
            bpf_memory_bytes: self.bpf.memory_bytes() + unwind.page_bytes,
            unwinder_missed: self.unwinder_missed,
            unwind,
        })
    }
}
