//! What can be asked of a collector.

use super::block::BlockConfig;
use super::bpf::ProgramForm;
use super::live::LiveConfig;
use super::tcp::TcpConfig;
use super::waits::WaitConfig;
use crate::unwind::UnwindConfig;

/// How kind `alloc` finds out who gets memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllocMode {
    /// By the pages that processes get from the kernel.
    #[default]
    Faults,
    /// By probes on the allocator's functions, in windows of time.
    Window,
    /// By a library within the process, which also knows what is freed.
    Live,
}

impl AllocMode {
    /// What it is called on command lines and in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Faults => "faults",
            Self::Window => "window",
            Self::Live => "live",
        }
    }
}

/// What to collect.
#[derive(Clone, Debug)]
pub struct CollectConfig {
    /// CPU samples a second on each CPU; `None` takes none.
    pub cpu_rate_hz: Option<u64>,
    /// Which waits are sampled; `None` is none.
    pub waits: Option<WaitConfig>,
    /// One sample in this much growth of a process's memory, in bytes, less than 2^32; `None` is none.
    pub growth_period_bytes: Option<u64>,
    /// One sample in this much that processes allocate while a window is open on them, in bytes; `None` is
    /// none.
    pub window_period_bytes: Option<u64>,
    /// How live heaps are followed; `None` is not at all.
    pub live: Option<LiveConfig>,
    /// Which requests to disks are followed; `None` is none.
    pub block: Option<BlockConfig>,
    /// Which TCP connections are followed; `None` is none.
    pub tcp: Option<TcpConfig>,
    /// Samples of growth in a second on each CPU, at most, but for large ones: where there would be more,
    /// a share of them is kept, which stands for all.
    pub growth_samples_per_second: u32,
    /// Whether to tell of processes that the kernel ends for want of memory, as
    /// [`Event::OutOfMemory`](super::Event); only where growth is sampled.
    pub oom_victims: bool,
    /// Sample this process only.
    pub target_pid: Option<u32>,
    /// How stacks without frame pointers are walked.
    pub unwind: UnwindConfig,
    /// The form that programs are loaded in; `None` is what fits the kernel.
    pub program_form: Option<ProgramForm>,
}

impl CollectConfig {
    /// Whether nothing is asked for: after what is taken out, that was all.
    pub(super) const fn is_nothing(&self) -> bool {
        self.cpu_rate_hz.is_none()
            && self.waits.is_none()
            && self.growth_period_bytes.is_none()
            && self.window_period_bytes.is_none()
            && self.live.is_none()
            && self.block.is_none()
            && self.tcp.is_none()
    }

    /// Whether there is nothing to go on with if there are no uprobes.
    pub(super) fn is_of_uprobes_alone(&self) -> bool {
        Self { window_period_bytes: None, live: None, ..self.clone() }.is_nothing()
    }

    /// CPU time of all processes, with defaults for what is not said.
    pub fn at_rate(cpu_rate_hz: u64) -> Self {
        Self {
            cpu_rate_hz: Some(cpu_rate_hz),
            waits: None,
            growth_period_bytes: None,
            window_period_bytes: None,
            live: None,
            block: None,
            tcp: None,
            growth_samples_per_second: u32::MAX,
            oom_victims: false,
            target_pid: None,
            unwind: UnwindConfig::default(),
            program_form: None,
        }
    }

    /// Growth of all processes' memory and nothing else, with all of its samples.
    pub fn of_growth(period_bytes: u64) -> Self {
        Self { cpu_rate_hz: None, growth_period_bytes: Some(period_bytes), ..Self::at_rate(0) }
    }

    /// What processes allocate in windows, and nothing else, with defaults for what is not said.
    pub fn of_windows(period_bytes: u64) -> Self {
        Self { cpu_rate_hz: None, window_period_bytes: Some(period_bytes), ..Self::at_rate(0) }
    }

    /// Live heaps of all processes that have the library, and nothing else, with defaults for what is not
    /// said.
    pub fn of_live_heaps(live: LiveConfig) -> Self {
        Self { cpu_rate_hz: None, live: Some(live), ..Self::at_rate(0) }
    }

    /// Requests of all processes to disks and nothing else, with defaults for what is not said.
    pub fn of_blocks(block: BlockConfig) -> Self {
        Self { cpu_rate_hz: None, block: Some(block), ..Self::at_rate(0) }
    }

    /// TCP connections of all processes and nothing else, with defaults for what is not said.
    pub fn of_connections(tcp: TcpConfig) -> Self {
        Self { cpu_rate_hz: None, tcp: Some(tcp), ..Self::at_rate(0) }
    }

    /// Waits of all processes and nothing else, with defaults for what is not said.
    pub fn of_waits(waits: WaitConfig) -> Self {
        Self { cpu_rate_hz: None, waits: Some(waits), ..Self::at_rate(0) }
    }
}
