//! A recording: profiles this host here and now, without a collector.
//!
//! `everflame record` is built on this. A session samples on a thread of its own until it is
//! finished, then symbolises what it saw and gives one profile in which each sample says
//! which process it comes from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use everflame_agent_common::unwind::Stop;
use everflame_profile::kind::Kind;
use everflame_profile::{MergeError, Merger, pprof};
use thiserror::Error;

use crate::collect::{
    BlockConfig, CollectConfig, CollectError, CollectStats, LiveConfig, TcpConfig, WaitConfig,
    Waker,
};
use crate::live::LiveStats;
use crate::profile::{Symbols, build};
use crate::profiler::{ClosedWindow, Profiler};
use crate::symbolize::{KernelStatus, SymbolizeConfig, Symbolizer};
use crate::target::TargetFilter;
use crate::windows::WindowError;

pub use crate::collect::AllocMode;
pub use crate::target::Target;

/// Memory for symbols while a recording is finished.
const RECORDING_SYMBOL_BYTES: usize = 1 << 30;

/// How much memory a sample stands for, unless somebody says otherwise.
pub const DEFAULT_ALLOC_PERIOD_BYTES: u64 = 512 << 10;

/// What to record.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Which profile: [`Kind::Cpu`], [`Kind::OffCpu`], [`Kind::Lock`], [`Kind::Alloc`] or [`Kind::Block`].
    pub kind: Kind,
    /// CPU samples a second on each CPU.
    pub rate_hz: u64,
    /// How allocations are seen.
    pub alloc_mode: AllocMode,
    /// One sample in this much memory, in bytes; but not in mode `live`.
    pub alloc_period_bytes: u64,
    /// The same in mode `live`; `None` leaves it as processes have it.
    pub live_period_bytes: Option<u64>,
    /// Whose.
    pub target: Target,
}

/// Why there is no recording.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The live heap of the process cannot be seen.
    #[error(
        "process {pid} has not loaded libeverflame_alloc.so, without which its live heap cannot be \
         seen; start it with LD_PRELOAD=/path/to/libeverflame_alloc.so (docs/live-heap.md)"
    )]
    NotPreloaded {
        /// What was asked for.
        pid: u32,
    },
    /// The live heap of the process cannot be seen, although it could be.
    #[error("cannot attach to libeverflame_alloc.so in process {pid}: {reason}")]
    NotAttached {
        /// What was asked for.
        pid: u32,
        /// What the kernel says.
        reason: String,
    },
    /// The kernel does not let us.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The process's allocators cannot be seen.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The mode is about one process.
    #[error("allocations are recorded in mode `{}` of one process; say which", .mode.name())]
    NoProcess {
        /// What was asked for.
        mode: AllocMode,
    },
    /// The thread could not be started or did not survive.
    #[error("the sampling thread failed")]
    Thread {
        /// Why, if the system said so.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The profiles of processes do not fit together.
    #[error("cannot add up the profiles of all processes")]
    Merge(#[from] MergeError),
}

/// How far a recording is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Samples taken of the target.
    pub samples: u64,
    /// Samples lost, of any process.
    pub lost: u64,
}

/// What a session has seen.
#[derive(Debug)]
pub struct Recording {
    /// One profile; its samples carry `pid` and `comm`, and those of locks their `side`.
    pub profile: pprof::Profile,
    /// Samples in it.
    pub samples: u64,
    /// Samples that were lost, of any process.
    pub lost: u64,
    /// What the user should know about its quality.
    pub notes: Vec<String>,
}

/// A running recording.
pub struct Session {
    kind: Kind,
    shared: Arc<Shared>,
    waker: Waker,
    retarget: Sender<Target>,
    thread: JoinHandle<Result<Outcome, CollectError>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    samples: AtomicU64,
    lost: AtomicU64,
}

struct Outcome {
    windows: Vec<ClosedWindow>,
    stats: CollectStats,
    live: LiveStats,
}

impl Session {
    /// Starts to sample.
    pub fn start(config: SessionConfig) -> Result<Self, SessionError> {
        let target_pid = match config.target {
            Target::Pid(pid) => Some(pid),
            _ => None,
        };
        let is_live = config.kind == Kind::Alloc && config.alloc_mode == AllocMode::Live;
        let collect = match config.kind {
            Kind::Cpu => CollectConfig::at_rate(config.rate_hz),
            Kind::OffCpu => CollectConfig::of_waits(WaitConfig::all()),
            Kind::Lock => CollectConfig::of_waits(WaitConfig { locks: true, ..WaitConfig::all() }),
            Kind::Alloc => match config.alloc_mode {
                AllocMode::Faults => CollectConfig::of_growth(config.alloc_period_bytes),
                AllocMode::Window => CollectConfig::of_windows(config.alloc_period_bytes),
                AllocMode::Live => CollectConfig::of_live_heaps(LiveConfig {
                    period_bytes: config.live_period_bytes,
                }),
            },
            Kind::Block => CollectConfig::of_blocks(BlockConfig::for_recording()),
            Kind::Tcp => CollectConfig::of_connections(TcpConfig::for_recording()),
        };
        let collect = CollectConfig { target_pid, ..collect };
        let mut profiler = Profiler::start(&collect, TargetFilter::for_recording(config.target))?;
        if let Some(pid) = target_pid.filter(|_| is_live) {
            match profiler.live_attachment(pid) {
                Some(Ok(())) => {}
                Some(Err(reason)) => return Err(SessionError::NotAttached { pid, reason }),
                None => return Err(SessionError::NotPreloaded { pid }),
            }
        }
        if collect.window_period_bytes.is_some() {
            let mode = config.alloc_mode;
            let pid = target_pid.ok_or(SessionError::NoProcess { mode })?;
            profiler.open_window(pid, Instant::now() + SETTLE_TIME)?;
        }
        let waker = profiler.waker().map_err(|source| CollectError::Wait { source })?;
        let shared = Arc::new(Shared::default());
        let (retarget, targets) = channel();
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("record".to_owned())
                .spawn(move || sample(profiler, &shared, &targets))
                .map_err(|source| SessionError::Thread { source: Some(source) })?
        };
        Ok(Self { kind: config.kind, shared, waker, retarget, thread })
    }

    /// Records another target from now on.
    pub fn retarget(&self, target: Target) {
        // Fails only if the thread has ended, which `finish` reports.
        let _ = self.retarget.send(target);
        self.waker.wake();
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress {
            samples: self.shared.samples.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
        }
    }

    /// Stops sampling and builds the profile.
    pub fn finish(self) -> Result<Recording, SessionError> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        // A panic has been printed by the thread itself; its payload says nothing more.
        let outcome = match self.thread.join() {
            Ok(outcome) => outcome?,
            Err(_) => return Err(SessionError::Thread { source: None }),
        };
        // Once, while the user waits: nothing is saved at the cost of lines.
        let mut symbolizer = Symbolizer::new(SymbolizeConfig {
            cache_bytes: RECORDING_SYMBOL_BYTES,
            dwarf_bytes: RECORDING_SYMBOL_BYTES as u64,
            max_functions: RECORDING_SYMBOL_BYTES / 64,
            ..SymbolizeConfig::default()
        });
        let mut merger = Merger::new();
        let mut samples = 0;
        for ClosedWindow { window, time, .. } in &outcome.windows {
            samples += window.samples;
            let symbols = Symbols::resolve(window, &mut symbolizer);
            for process in build(window, &symbols, *time, &[self.kind]) {
                let mut labels = process.labels;
                // Samples of locks say so themselves.
                let is_lock = process.kind == Kind::Lock;
                labels.retain(|(name, _)| matches!(name.as_str(), "pid" | "comm") && !is_lock);
                merger.add_with_labels(&process.profile, &labels)?;
            }
        }
        let mut profile = merger.finish();
        if let (Some(first), Some(last)) = (outcome.windows.first(), outcome.windows.last()) {
            // Many processes over the same time: the recording lasted once, not for each.
            profile.time_nanos = first.time.start_unix_ns;
            profile.duration_nanos =
                last.time.start_unix_ns + last.time.duration_ns - first.time.start_unix_ns;
        }
        let lost = outcome.stats.lost();
        let mut notes = notes(self.kind, &outcome.stats, symbolizer.kernel_status());
        notes.extend(live_notes(&outcome.stats, &outcome.live));
        notes.extend(truncation_note(&outcome.windows));
        Ok(Recording { profile, samples, lost, notes })
    }
}

/// How long stacks are waited for whose files are not compiled yet; large ones take a second.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// The sampling thread.
fn sample(
    mut profiler: Profiler,
    shared: &Shared,
    targets: &Receiver<Target>,
) -> Result<Outcome, CollectError> {
    const REPORT_INTERVAL: Duration = Duration::from_millis(250);
    let mut windows = Vec::new();
    let mut samples = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        for target in targets.try_iter() {
            profiler.retarget(target);
        }
        profiler.run_until(Instant::now() + REPORT_INTERVAL)?;
        shared.samples.store(samples + profiler.samples(), Ordering::Relaxed);
        shared.lost.store(profiler.stats()?.lost(), Ordering::Relaxed);
        if profiler.is_full() {
            profiler.report_connections(false);
            let closed = profiler.take_window();
            samples += closed.window.samples;
            windows.push(closed);
        }
    }
    profiler.close_windows();
    profiler.report_waiting(Instant::now());
    profiler.settle(Instant::now() + SETTLE_TIME);
    let stats = profiler.stats()?;
    let live = profiler.live_stats();
    profiler.report_held();
    profiler.report_connections(true);
    windows.push(profiler.take_window());
    Ok(Outcome { windows, stats, live })
}

/// Says how many user stacks end early and why, when that is more than one in a hundred.
fn truncation_note(windows: &[ClosedWindow]) -> Option<String> {
    let mut stops = [0; Stop::ALL.len()];
    for closed in windows {
        for (sum, count) in stops.iter_mut().zip(closed.window.user_stops) {
            *sum += count;
        }
    }
    let by_reason = || Stop::ALL.into_iter().zip(stops);
    let stacks: u64 =
        by_reason().filter(|(stop, _)| *stop != Stop::Absent).map(|(_, count)| count).sum();
    let mut early: Vec<(Stop, u64)> =
        by_reason().filter(|(stop, count)| stop.is_truncated() && *count > 0).collect();
    let truncated: u64 = early.iter().map(|(_, count)| count).sum();
    if truncated * 100 <= stacks {
        return None;
    }
    early.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let reasons: Vec<String> =
        early.iter().map(|(stop, count)| format!("{} {count}", stop.name())).collect();
    Some(format!(
        "{truncated} of {stacks} user stacks end before their outermost frame: {}",
        reasons.join(", ")
    ))
}

/// What is missing in live heaps, or is in them and should not be.
fn live_notes(stats: &CollectStats, live: &LiveStats) -> Vec<String> {
    let mut notes = Vec::new();
    if stats.freed.lost() > 0 {
        notes.push(format!(
            "as many as {} sampled objects look held that were freed; a longer --alloc-period helps",
            stats.freed.lost()
        ));
    }
    if live.refused > 0 {
        notes.push(format!(
            "{} sampled objects are missing in what is held, as there was no room for them; a \
             longer --alloc-period helps",
            live.refused
        ));
    }
    notes
}

fn notes(kind: Kind, stats: &CollectStats, kernel: KernelStatus) -> Vec<String> {
    let mut notes = Vec::new();
    let lost = stats.lost();
    if lost > 0 {
        let remedy = match kind {
            Kind::Cpu => "; a lower --rate-hz helps",
            Kind::Alloc => "; a longer --alloc-period helps",
            _ => "",
        };
        notes.push(format!("{lost} samples were lost because the ring buffer was full{remedy}"));
    }
    let untracked = stats.block.untracked();
    if untracked > 0 {
        notes.push(format!(
            "{untracked} requests to disks are missing, as more were under way than can be followed"
        ));
    }
    let untracked = stats.tcp.untracked();
    if untracked > 0 {
        notes.push(format!(
            "TCP connections are missing, as there are more than can be followed: {untracked} times there \
             was no room for one"
        ));
    }
    for (program, runs) in &stats.missed_runs {
        notes.push(format!(
            "what {runs} runs of the BPF program {program} would have seen is missing: the kernel left them out, \
             as it was under way on that CPU"
        ));
    }
    if stats.sideband_lost > 0 {
        notes.push(format!(
            "{} process records were lost: some processes may be unnamed",
            stats.sideband_lost
        ));
    }
    if !matches!(kernel, KernelStatus::Available { .. }) {
        notes.push(kernel.to_string());
    }
    notes
}
