//! What a collector says of its losses and its cost.

use super::bpf::ProgramStats;
use super::waits::WaitStats;
use crate::process::ObjectStats;
use crate::unwind::UnwindStats;

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
    /// Those of the program that tells whom the kernel ends for want of memory.
    pub oom_victim: ProgramStats,
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
        self.cpu.lost() + self.waits.lost() + self.growth.lost()
    }
}
