//! What the agent can use of a kernel, what for, and what it does without.

use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::btf::{Btf, read_kernel_types};
use super::{lift_memlock_limit, probe::probe};

/// Something that a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Its own types, in BTF.
    KernelTypes,
    /// BPF programs on perf events.
    PerfEventPrograms,
    /// The helper `bpf_probe_read_user`.
    ProbeReadUser,
    /// The helper `bpf_probe_read_kernel`.
    ProbeReadKernel,
    /// Ring buffers.
    RingBuffer,
    /// Arrays of maps.
    MapInMap,
    /// The helper `bpf_loop`.
    BpfLoop,
    /// The helpers `bpf_task_pt_regs` and `bpf_get_current_task_btf`.
    TaskPtRegs,
    /// Build ids in the records of new mappings.
    BuildIdRecords,
    /// `sched_switch` tells programs the state of the task that leaves, as its last argument.
    SwitchState,
    /// Memory of programs' own for each task, also for programs on tracepoints.
    TaskStorage,
    /// The tracepoint `sched_exit_tp`.
    SchedExit,
    /// A kprobe on [`FINISH_TASK_SWITCH`](super::FINISH_TASK_SWITCH).
    FinishTaskSwitch,
    /// The kernel's own account of the time that each task is ready to run but not on a CPU.
    RunDelay,
    /// The tracepoint `sched_waking`, with its arguments.
    SchedWaking,
    /// Programs that run for each task.
    TaskIterator,
    /// The tracepoints `contention_begin` and `contention_end`.
    LockContention,
}

impl Feature {
    /// All of them, first what nothing works without.
    pub const ALL: [Self; 17] = [
        Self::KernelTypes,
        Self::PerfEventPrograms,
        Self::ProbeReadUser,
        Self::ProbeReadKernel,
        Self::RingBuffer,
        Self::MapInMap,
        Self::BpfLoop,
        Self::TaskPtRegs,
        Self::BuildIdRecords,
        Self::SwitchState,
        Self::TaskStorage,
        Self::SchedExit,
        Self::FinishTaskSwitch,
        Self::RunDelay,
        Self::SchedWaking,
        Self::TaskIterator,
        Self::LockContention,
    ];

    /// What people know it as.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KernelTypes => "BTF",
            Self::PerfEventPrograms => "perf_event programs",
            Self::ProbeReadUser => "bpf_probe_read_user",
            Self::ProbeReadKernel => "bpf_probe_read_kernel",
            Self::RingBuffer => "ring buffers",
            Self::MapInMap => "arrays of maps",
            Self::BpfLoop => "bpf_loop",
            Self::TaskPtRegs => "bpf_task_pt_regs",
            Self::BuildIdRecords => "build ids in records",
            Self::SwitchState => "sched_switch prev_state",
            Self::TaskStorage => "task storage",
            Self::SchedExit => "sched_exit_tp",
            Self::FinishTaskSwitch => "finish_task_switch",
            Self::RunDelay => "run-queue delay",
            Self::SchedWaking => "sched_waking",
            Self::TaskIterator => "task iterator",
            Self::LockContention => "contention_begin",
        }
    }

    /// The version of Linux that brought it. A kernel can have it earlier, or be built
    /// without.
    pub const fn since(self) -> &'static str {
        match self {
            Self::KernelTypes => "5.4",
            Self::PerfEventPrograms => "4.9",
            Self::ProbeReadUser | Self::ProbeReadKernel => "5.5",
            Self::RingBuffer => "5.8",
            Self::MapInMap => "4.12",
            Self::BpfLoop => "5.17",
            Self::TaskPtRegs => "5.15",
            Self::BuildIdRecords => "5.12",
            Self::SwitchState => "5.18",
            // In 5.11 only programs of security modules could use it.
            Self::TaskStorage => "5.13",
            Self::SchedExit => "6.15",
            // As a perf event; such programs as such are older.
            Self::FinishTaskSwitch => "4.17",
            Self::RunDelay => "2.6.22",
            // That a program can read a tracepoint's arguments; it is older itself.
            Self::SchedWaking => "5.5",
            Self::TaskIterator => "5.8",
            Self::LockContention => "5.19",
        }
    }

    /// What it is good for.
    pub const fn gives(self) -> &'static str {
        match self {
            Self::KernelTypes => "finding the kernel's data",
            Self::PerfEventPrograms => "sampling CPUs",
            Self::ProbeReadUser => "reading the stacks of programs",
            Self::ProbeReadKernel => "reading the registers of programs that are in the kernel",
            Self::RingBuffer => "handing samples to the agent",
            Self::MapInMap => "adding unwind tables while sampling",
            Self::BpfLoop => "walking user stacks in few instructions",
            Self::TaskPtRegs => "finding the registers of programs that are in the kernel",
            Self::BuildIdRecords => "telling executables apart without opening them",
            Self::SwitchState => "following waits: kinds `offcpu` and `lock`",
            Self::TaskStorage => "remembering since when each thread waits",
            Self::SchedExit => "seeing how waits end, with the stack of the thread that waited",
            Self::FinishTaskSwitch => "the same by a kprobe, where there is no sched_exit_tp",
            Self::RunDelay => "telling waits from the time that a thread is ready and has no CPU",
            Self::SchedWaking => "seeing who releases a lock",
            Self::TaskIterator => "finding threads, and those that wait when a window ends",
            Self::LockContention => "telling which of the kernel's own locks is waited for",
        }
    }

    /// What becomes of the agent without it.
    pub const fn without(self) -> &'static str {
        match self {
            Self::KernelTypes => "nothing can be sampled; CONFIG_DEBUG_INFO_BTF=y switches it on",
            Self::ProbeReadKernel => {
                "nothing can be sampled; kernel lockdown in confidentiality mode switches it off"
            }
            Self::PerfEventPrograms | Self::ProbeReadUser | Self::RingBuffer | Self::MapInMap => {
                "nothing can be sampled"
            }
            Self::BpfLoop => "user stacks are walked by a bounded loop",
            Self::TaskPtRegs => "they are computed from the layout of the kernel's types",
            Self::BuildIdRecords => {
                "executables are told apart by device and inode, and build ids read from the files"
            }
            Self::SwitchState | Self::TaskStorage | Self::TaskIterator => {
                "there are no profiles of kinds `offcpu` and `lock`"
            }
            Self::SchedExit => "a kprobe on finish_task_switch is used",
            Self::FinishTaskSwitch => "kinds `offcpu` and `lock` need sched_exit_tp",
            Self::RunDelay => {
                "run-queue delay counts as part of the wait before it; CONFIG_SCHEDSTATS=y or \
                 CONFIG_TASK_DELAY_ACCT=y switches it on"
            }
            Self::SchedWaking => "nobody is seen to release a lock",
            Self::LockContention => {
                "waits for locks of the kernel have no address, and spinning is not seen"
            }
        }
    }

    /// Whether there is nothing to do without it.
    pub const fn is_required(self) -> bool {
        matches!(
            self,
            Self::KernelTypes
                | Self::PerfEventPrograms
                | Self::ProbeReadUser
                | Self::ProbeReadKernel
                | Self::RingBuffer
                | Self::MapInMap
        )
    }
}

/// Whether a kernel has a feature.
#[derive(Clone, Debug)]
pub enum Support {
    /// It was used.
    Present,
    /// The kernel does not know it, or it is switched off.
    Absent,
    /// It could not be tried, mostly for want of a right.
    Unknown(Arc<io::Error>),
}

/// The form of the programs that walk user stacks. What they use is chosen together, so that
/// there are two forms to build and to test, not four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwinder {
    /// Steps are called by `bpf_loop`, and `bpf_task_pt_regs` finds the user's registers when
    /// the event hit the kernel.
    Recent,
    /// Steps are taken in a loop that the verifier follows to its end, and those registers are
    /// at [`super::pt_regs_location`].
    Old,
}

/// How the end of a wait is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// At the end of the scheduler.
    SchedExit,
    /// On entry to a function that the scheduler calls after a switch.
    FinishTaskSwitch,
}

impl WaitEnd {
    /// What people know it as.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SchedExit => "sched_exit_tp",
            Self::FinishTaskSwitch => "kprobe on finish_task_switch",
        }
    }
}

/// The kernel lacks something that cannot be done without: anything at all where it
/// [is required](Feature::is_required), else waits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the kernel has no {} (Linux {} or newer): {}",
    .feature.name(),
    .feature.since(),
    .feature.without()
)]
pub struct MissingFeature {
    /// What it lacks.
    pub feature: Feature,
}

/// What the running kernel can do.
#[derive(Clone, Debug)]
pub struct KernelFeatures {
    support: [Support; Feature::ALL.len()],
}

impl KernelFeatures {
    /// Tries everything. Takes some milliseconds, and leaves nothing in the kernel.
    pub fn probe() -> Self {
        lift_memlock_limit();
        let bytes = read_kernel_types().map_err(Arc::new);
        let types = bytes
            .as_deref()
            .map_err(Arc::clone)
            .and_then(|bytes| Btf::parse(bytes).map_err(Arc::new));
        Self::from_fn(|feature| match probe(feature, &types) {
            Ok(true) => Support::Present,
            Ok(false) => Support::Absent,
            Err(error) => Support::Unknown(Arc::new(error)),
        })
    }

    /// A kernel that was not asked.
    pub(crate) fn from_fn(support: impl FnMut(Feature) -> Support) -> Self {
        Self { support: Feature::ALL.map(support) }
    }

    /// What was found of each.
    pub fn iter(&self) -> impl Iterator<Item = (Feature, &Support)> {
        Feature::ALL.into_iter().zip(&self.support)
    }

    /// Whether a feature is there for sure.
    pub fn has(&self, feature: Feature) -> bool {
        self.iter().any(|(each, support)| each == feature && matches!(support, Support::Present))
    }

    /// Whether profiling makes sense at all on this kernel. What is unknown is no reason to
    /// give up: loading the programs will tell.
    ///
    /// # Errors
    /// When a required feature is absent.
    pub fn require(&self) -> Result<(), MissingFeature> {
        let missing = self
            .iter()
            .find(|(feature, support)| feature.is_required() && matches!(support, Support::Absent));
        missing.map_or(Ok(()), |(feature, _)| Err(MissingFeature { feature }))
    }

    /// Whether waits can be followed, and how their ends are seen. As long as something is
    /// unknown that is an expectation.
    ///
    /// # Errors
    /// When something is absent without which they are not followed.
    pub fn wait_end(&self) -> Result<WaitEnd, MissingFeature> {
        let is_absent = |feature| {
            self.iter().any(|(each, found)| each == feature && matches!(found, Support::Absent))
        };
        let missing = |feature| Err(MissingFeature { feature });
        for feature in [Feature::SwitchState, Feature::TaskStorage, Feature::TaskIterator] {
            if is_absent(feature) {
                return missing(feature);
            }
        }
        match (is_absent(Feature::SchedExit), is_absent(Feature::FinishTaskSwitch)) {
            (false, _) => Ok(WaitEnd::SchedExit),
            (true, false) => Ok(WaitEnd::FinishTaskSwitch),
            (true, true) => missing(Feature::FinishTaskSwitch),
        }
    }

    /// How user stacks are walked here.
    pub fn unwinder(&self) -> Unwinder {
        if self.has(Feature::BpfLoop) && self.has(Feature::TaskPtRegs) {
            Unwinder::Recent
        } else {
            Unwinder::Old
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(lacks: &[Feature]) -> KernelFeatures {
        KernelFeatures::from_fn(|feature| {
            if lacks.contains(&feature) { Support::Absent } else { Support::Present }
        })
    }

    #[test]
    fn older_kernels_get_the_older_form() {
        assert_eq!(kernel(&[]).unwinder(), Unwinder::Recent);
        assert_eq!(kernel(&[Feature::BpfLoop]).unwinder(), Unwinder::Old);
        let oldest = kernel(&[Feature::BpfLoop, Feature::TaskPtRegs, Feature::BuildIdRecords]);
        assert_eq!(oldest.unwinder(), Unwinder::Old);
        assert_eq!(oldest.require(), Ok(()));
    }

    #[test]
    fn waits_are_followed_where_their_beginning_and_their_end_are_seen() {
        let message = |lacks: &[Feature]| kernel(lacks).wait_end().unwrap_err().to_string();
        assert_eq!(kernel(&[]).wait_end(), Ok(WaitEnd::SchedExit));
        assert_eq!(kernel(&[Feature::FinishTaskSwitch]).wait_end(), Ok(WaitEnd::SchedExit));
        assert_eq!(kernel(&[Feature::SchedExit]).wait_end(), Ok(WaitEnd::FinishTaskSwitch));
        let rest = [Feature::RunDelay, Feature::SchedWaking, Feature::LockContention];
        assert_eq!(kernel(&rest).wait_end(), Ok(WaitEnd::SchedExit));
        assert_eq!(
            message(&[Feature::SchedExit, Feature::FinishTaskSwitch]),
            "the kernel has no finish_task_switch (Linux 4.17 or newer): kinds `offcpu` and \
             `lock` need sched_exit_tp"
        );
        assert_eq!(
            message(&[Feature::SwitchState, Feature::TaskStorage]),
            "the kernel has no sched_switch prev_state (Linux 5.18 or newer): there are no \
             profiles of kinds `offcpu` and `lock`"
        );
        assert_eq!(kernel(&[Feature::TaskStorage, Feature::SwitchState]).require(), Ok(()));
        let unknown = KernelFeatures::from_fn(|_| {
            Support::Unknown(Arc::new(io::Error::from_raw_os_error(libc::EPERM)))
        });
        assert_eq!(unknown.wait_end(), Ok(WaitEnd::SchedExit));
    }

    #[test]
    fn only_what_is_required_and_known_to_be_absent_is_a_reason_not_to_start() {
        let message = kernel(&[Feature::RingBuffer]).require().unwrap_err().to_string();
        assert_eq!(
            message,
            "the kernel has no ring buffers (Linux 5.8 or newer): nothing can be sampled"
        );
        let unknown = KernelFeatures::from_fn(|_| {
            Support::Unknown(Arc::new(io::Error::from_raw_os_error(libc::EPERM)))
        });
        assert_eq!(unknown.require(), Ok(()));
        assert!(!unknown.has(Feature::RingBuffer));
        assert_eq!(unknown.unwinder(), Unwinder::Old);
    }
}
