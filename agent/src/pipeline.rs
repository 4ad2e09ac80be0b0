//! The agent's stages and the bounded queues between them.
//!
//! ```text
//! sampling thread: collect -> process -> aggregate --(window)--> symbolising thread:
//! symbolize -> profile -> encode -> export (spool) ... export thread: stream to collector
//! ```
//!
//! Between the first two there is room for one window. While the second is busy the first
//! goes on filling its present window, which grows longer instead of being dropped.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use everflame_agent_common::stats::Program;
use everflame_agent_common::unwind::Stop;
use everflame_profile::encode_gz;
use everflame_profile::kind::Kind;
use everflame_proto::v1::{Batch, Label, ProfileRecord};
use thiserror::Error;
use tracing::{debug, info};

use crate::collect::{
    BlockConfig, Clock, CollectConfig, CollectError, CollectStats, LiveConfig, WaitConfig, Waker,
    brief,
};
use crate::export::Exporter;
use crate::health::Health;
use crate::metrics::{
    FrameLabels, KindLabels, Metrics, OutcomeLabels, QueueLabels, ReasonLabels, SideLabels,
    TruncationLabels, raise_to,
};
use crate::profile::{FrameStats, Symbols, build};
use crate::profiler::{ClosedWindow, Profiler};
use crate::publish::{publish_block, publish_live, publish_unwind};
use crate::rotation::{RotationConfig, RotationStats};
use crate::symbolize::{KernelStatus, SymbolizeConfig, SymbolizeStats, Symbolizer};
use crate::target::TargetFilter;
use crate::unwind::UnwindConfig;
use crate::urgent::Urgent;

/// How to profile.
#[derive(Clone, Debug)]
pub struct PipelineConfig {
    /// CPU samples a second on each CPU; `None` takes none.
    pub cpu_rate_hz: Option<u64>,
    /// Which waits are sampled; `None` is none.
    pub waits: Option<WaitConfig>,
    /// One sample in this much growth of a process's memory, in bytes; `None` takes none.
    pub growth_period_bytes: Option<u64>,
    /// Windows on allocators, and one sample in this much that is allocated while they are open, in bytes;
    /// `None` opens none.
    pub alloc_windows: Option<(RotationConfig, u64)>,
    /// How live heaps are followed; `None` is not at all.
    pub live: Option<LiveConfig>,
    /// Which requests to disks are followed; `None` is none.
    pub block: Option<BlockConfig>,
    /// Which profiles are made of what is sampled.
    pub kinds: Vec<Kind>,
    /// Length of a window.
    pub window: Duration,
    /// This host's name.
    pub host: String,
    /// Labels for every profile; they win over those that are found out.
    pub labels: Vec<(String, String)>,
    /// How much memory unwind tables may take, and where they are kept.
    pub unwind: UnwindConfig,
    /// How much of symbols and debug information is read and kept.
    pub symbolize: SymbolizeConfig,
}

/// Why the agent does not profile.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// The kernel does not let us.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// No thread could be started.
    #[error("cannot start a thread")]
    Thread {
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
}

/// How long a window waits for the stacks of waits that go on; later ones go into the next.
const WAITING_TIME: Duration = Duration::from_millis(200);

/// How long the last window waits for stacks that are being finished.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// Samples of growth on each CPU, at most; see docs/benchmarks.md for what they cost.
const GROWTH_SAMPLES_PER_SECOND: u32 = 25;

/// A running agent. Its threads are called [`Pipeline::THREADS`] in `health`, which hears
/// of their end.
#[derive(Debug)]
pub struct Pipeline {
    stop: Arc<AtomicBool>,
    waker: Waker,
}

impl Pipeline {
    /// The stages' threads.
    pub const THREADS: [&str; 2] = ["sampling", "symbolizing"];

    /// Starts to profile this host. Finished windows go to `exporter`.
    pub fn start(
        config: PipelineConfig,
        exporter: Arc<Exporter>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Result<Self, PipelineError> {
        let collect = CollectConfig {
            cpu_rate_hz: config.cpu_rate_hz,
            waits: config.waits,
            growth_period_bytes: config.growth_period_bytes,
            window_period_bytes: config.alloc_windows.map(|(_, period_bytes)| period_bytes),
            live: config.live,
            block: config.block,
            growth_samples_per_second: GROWTH_SAMPLES_PER_SECOND,
            oom_victims: config.growth_period_bytes.is_some(),
            target_pid: None,
            unwind: config.unwind.clone(),
            program_form: None,
        };
        let mut profiler = Profiler::start(&collect, TargetFilter::all())?;
        let has_windows =
            profiler.refused_programs().all(|(program, _)| program != Program::Allocation);
        if let Some((rotation, _)) = config.alloc_windows.filter(|_| has_windows) {
            profiler.rotate_windows(rotation);
        }
        if let Some(clock) = profiler.clock() {
            metrics.set_sampling_source(match clock {
                Clock::Cycles => "cycles",
                Clock::CpuClock => "cpu-clock",
            });
        }
        for (program, error) in profiler.refused_programs() {
            metrics.set_capability_off(&format!("program {}", program.name()), &brief(error));
        }
        let kinds = sampled(&config.kinds, profiler.wait_end().is_some());
        info!(kinds, window = ?config.window, "sampling has begun");
        let waker = profiler.waker().map_err(|source| CollectError::Wait { source })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = sync_channel(1);
        let thread_error = |source| PipelineError::Thread { source };
        let [sampling, symbolizing] = Self::THREADS;
        {
            let (stop, metrics) = (Arc::clone(&stop), Arc::clone(&metrics));
            let window = config.window;
            let heart = health.watch(sampling);
            thread::Builder::new()
                .name(sampling.to_owned())
                .spawn(move || match sample(profiler, window, &sender, &stop, &metrics) {
                    Ok(()) => drop(heart),
                    Err(error) => heart.fail(error),
                })
                .map_err(thread_error)?;
        }
        let heart = health.watch(symbolizing);
        thread::Builder::new()
            .name(symbolizing.to_owned())
            .spawn(move || {
                let _heart = heart;
                symbolize(&config, &receiver, &exporter, &metrics, &health);
            })
            .map_err(thread_error)?;
        Ok(Self { stop, waker })
    }

    /// Tells the threads to finish: sampling ends, and the last window goes to the
    /// exporter. Does not wait for that.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// Those of the wanted kinds that there will be profiles of, for the log.
fn sampled(wanted: &[Kind], waits_are_followed: bool) -> String {
    let names: Vec<&str> = wanted
        .iter()
        .filter(|kind| waits_are_followed || !matches!(kind, Kind::OffCpu | Kind::Lock))
        .map(|kind| kind.name())
        .collect();
    names.join(",")
}

/// The sampling thread.
fn sample(
    mut profiler: Profiler,
    window: Duration,
    sender: &SyncSender<ClosedWindow>,
    stop: &AtomicBool,
    metrics: &Metrics,
) -> Result<(), CollectError> {
    let mut deadline = Instant::now() + window;
    let mut waiting: Option<ClosedWindow> = None;
    let mut urgent = Urgent::default();
    let mut result = Ok(());
    while !stop.load(Ordering::Relaxed) {
        result = profiler.run_until(urgent.next_offer().map_or(deadline, |at| at.min(deadline)));
        if result.is_err() {
            break;
        }
        // They do not wait for the window.
        urgent.take_victims(&mut profiler, metrics);
        urgent.offer(sender);
        if Instant::now() < deadline && !profiler.is_full() {
            continue;
        }
        deadline = Instant::now() + window;
        profiler.report_waiting(Instant::now() + WAITING_TIME);
        if let Ok(stats) = profiler.stats() {
            publish_collect(metrics, &profiler, &stats);
            publish_block(metrics, &profiler, &stats.block);
            publish_unwind(metrics, &profiler, &stats);
            publish_live(metrics, &profiler.live_stats(), &stats.attached);
        }
        // The window that found no room goes first; meanwhile the present one grows. When
        // that is full too, sampling waits: the ring buffer overflows, and counts.
        if let Some(closed) = waiting.take() {
            waiting = if profiler.is_full() {
                hand_over(sender, closed, metrics);
                None
            } else {
                offer(sender, closed, metrics)
            };
        }
        if waiting.is_none() {
            profiler.report_held();
            waiting = offer(sender, profiler.take_window(), metrics);
        }
        let depth = metrics.queue_depth.get_or_create_owned(&QueueLabels { queue: "windows" });
        depth.set(i64::from(waiting.is_some()));
    }
    profiler.close_windows();
    profiler.report_waiting(Instant::now());
    profiler.settle(Instant::now() + SETTLE_TIME);
    profiler.report_held();
    // Sampling ends with the profiler; the rest may wait for the next stage.
    let last = profiler.take_window();
    drop(profiler);
    for closed in urgent.left().chain(waiting).chain([last]) {
        hand_over(sender, closed, metrics);
    }
    result
}

/// Waits for the next stage to have room.
fn hand_over(sender: &SyncSender<ClosedWindow>, closed: ClosedWindow, metrics: &Metrics) {
    if sender.send(closed).is_err() {
        metrics.windows_dropped.inc();
    }
}

/// Gives the window back if the next stage has no room for it.
fn offer(
    sender: &SyncSender<ClosedWindow>,
    closed: ClosedWindow,
    metrics: &Metrics,
) -> Option<ClosedWindow> {
    match sender.try_send(closed) {
        Ok(()) => None,
        Err(TrySendError::Full(closed)) => {
            metrics.windows_extended.inc();
            Some(closed)
        }
        Err(TrySendError::Disconnected(_)) => {
            metrics.windows_dropped.inc();
            None
        }
    }
}

/// The symbolising thread.
fn symbolize(
    config: &PipelineConfig,
    windows: &Receiver<ClosedWindow>,
    exporter: &Exporter,
    metrics: &Metrics,
    health: &Health,
) {
    let mut symbolizer = Symbolizer::new(config.symbolize.clone());
    match symbolizer.kernel_status() {
        KernelStatus::Available { functions } => info!(functions, "kernel symbols read"),
        problem => {
            metrics.set_capability_off("kernel symbols", &problem.to_string());
            tracing::warn!("{problem}");
        }
    }
    for ClosedWindow { window, time, is_oom } in windows {
        let symbols = Symbols::resolve(&window, &mut symbolizer);
        if !is_oom {
            symbolizer.trim();
        }
        let of_kinds = [
            (Kind::Cpu, window.cpu_samples()),
            (Kind::Alloc, window.growth + window.objects),
            (Kind::OffCpu, window.waits),
            (Kind::Lock, window.locks),
            (Kind::Block, window.blocks),
        ];
        for (kind, samples) in of_kinds.into_iter().filter(|(_, samples)| *samples > 0) {
            metrics.samples.get_or_create(&KindLabels { kind: kind.name() }).inc_by(samples);
        }
        publish_stops(metrics, "kernel", &window.kernel_stops);
        publish_stops(metrics, "user", &window.user_stops);
        publish_frames(metrics, &symbols.stats);
        publish_symbolize(metrics, &symbolizer.stats());
        let profiles: Vec<ProfileRecord> = build(&window, &symbols, time, &config.kinds)
            .map(|process| ProfileRecord {
                kind: process.kind.name().to_owned(),
                labels: labels(process.labels, is_oom, &config.labels),
                pprof_gz: encode_gz(&process.profile).into(),
            })
            .collect();
        if is_oom {
            metrics.oom_profiles.inc_by(profiles.len() as u64);
        } else {
            debug!(samples = window.samples, profiles = profiles.len(), "window finished");
            metrics.windows.inc();
            health.window_finished();
        }
        if profiles.is_empty() {
            continue;
        }
        exporter.submit(Batch {
            batch_id: Vec::new(),
            host: config.host.clone(),
            sender: concat!("everflame-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
            start_unix_ns: time.start_unix_ns,
            duration_ns: time.duration_ns,
            profiles,
        });
    }
}

/// Labels that a user has set win over those that were found out.
fn labels(found: Vec<(String, String)>, is_oom: bool, set: &[(String, String)]) -> Vec<Label> {
    let oom = is_oom.then(|| ("oom".to_owned(), "true".to_owned()));
    let found = found.into_iter().chain(oom);
    let found = found.filter(|(name, _)| !set.iter().any(|(set, _)| set == name));
    let mut labels: Vec<Label> =
        found.chain(set.iter().cloned()).map(|(name, value)| Label { name, value }).collect();
    labels.sort_by(|a, b| a.name.cmp(&b.name));
    labels
}

fn publish_collect(metrics: &Metrics, profiler: &Profiler, stats: &CollectStats) {
    let kind = Kind::Cpu.name();
    for (cpu, &lost) in stats.cpu.ring_full.iter().enumerate() {
        metrics.set_lost_samples(kind, u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    let no_scratch = stats.cpu.no_scratch
        + stats.waits.no_scratch()
        + stats.growth.no_scratch
        + stats.allocation.no_scratch
        + stats.allocated.no_scratch
        + stats.block.no_scratch();
    let skipped =
        [("idle", stats.cpu.idle), ("filtered", stats.cpu.filtered), ("no_scratch", no_scratch)];
    for (reason, count) in skipped {
        raise_to(&metrics.skipped_samples.get_or_create_owned(&ReasonLabels { reason }), count);
    }
    let run_time_ns = stats.cpu.estimated_run_time_ns();
    metrics.set_bpf_program(Program::Cpu.name(), stats.cpu.runs, run_time_ns);
    let waits = &stats.waits;
    let others = [
        (Program::Exec, &stats.exec),
        (Program::NewTask, &waits.new_task),
        (Program::SwitchOut, &waits.switch_out),
        (Program::SwitchIn, &waits.switch_in),
        (Program::Waking, &waits.waking),
        (Program::Waiting, &waits.waiting),
        (Program::LockBegin, &waits.lock_begin),
        (Program::LockEnd, &waits.lock_end),
        (Program::Growth, &stats.growth),
        (Program::Allocation, &stats.allocation),
        (Program::Allocated, &stats.allocated),
        (Program::Freed, &stats.freed),
        (Program::OomVictim, &stats.oom_victim),
    ];
    let others = others.into_iter().chain(stats.block.programs());
    for (program, stats) in others.filter(|(_, stats)| stats.runs > 0) {
        metrics.set_bpf_program(program.name(), stats.runs, stats.estimated_run_time_ns());
    }
    let lost = waits.switch_in.ring_full.iter().zip(&waits.waiting.ring_full);
    for (cpu, (ended, going_on)) in lost.enumerate() {
        let cpu = u32::try_from(cpu).unwrap_or(u32::MAX);
        metrics.set_lost_samples(Kind::OffCpu.name(), cpu, ended + going_on);
    }
    for cpu in 0..waits.waking.ring_full.len() {
        let lost = waits.of_locks().filter_map(|stats| stats.ring_full.get(cpu)).sum();
        metrics.set_lost_samples(Kind::Lock.name(), u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    for cpu in 0..stats.growth.ring_full.len() {
        let of_kind = [&stats.growth, &stats.allocation, &stats.allocated, &stats.freed];
        let lost = of_kind.iter().filter_map(|stats| stats.ring_full.get(cpu)).sum();
        metrics.set_lost_samples(Kind::Alloc.name(), u32::try_from(cpu).unwrap_or(u32::MAX), lost);
    }
    if let Some(windows) = profiler.rotation_stats() {
        publish_windows(metrics, &windows);
    }
    let history = profiler.history_stats();
    metrics.growth_history_bytes.set(gauge(history.bytes));
    raise_to(&metrics.growth_history_evictions, history.evicted);
    raise_to(&metrics.growth_history_folded, history.folded);
    let untracked = waits.untracked() + stats.growth.untracked + stats.block.untracked();
    raise_to(&metrics.untracked_threads, untracked);
    raise_to(
        &metrics.thinned_samples,
        waits.switch_in.thinned + stats.growth.thinned + stats.block.start.thinned,
    );
    raise_to(&metrics.waiting_errors, waits.waiting_errors);
    metrics.bpf_map_bytes.set(gauge(stats.bpf_memory_bytes));
    raise_to(&metrics.sideband_lost, stats.sideband_lost);
    raise_to(&metrics.unreadable_records, stats.unreadable);
    raise_to(&metrics.clock_backwards, stats.clock_backwards);
    let binaries = |outcome| metrics.binaries.get_or_create_owned(&OutcomeLabels { outcome });
    raise_to(&binaries("opened"), stats.objects.opened);
    raise_to(&binaries("failed"), stats.objects.failed);
    raise_to(&binaries("over_limit"), stats.objects.over_limit);
    let known = profiler.process_stats();
    metrics.processes.set(gauge(known.processes as u64));
    metrics.mappings.set(gauge(known.mappings as u64));
    raise_to(&metrics.refused_mappings, known.refused_mappings);
    raise_to(&metrics.processes_vanished, known.vanished);
    let depth = metrics.queue_depth.get_or_create_owned(&QueueLabels { queue: "events" });
    depth.set(gauge(profiler.queue_depth() as u64));
}

fn publish_windows(metrics: &Metrics, windows: &RotationStats) {
    metrics.alloc_windows_open.set(gauge(windows.open));
    raise_to(&metrics.alloc_windows, windows.opened);
    raise_to(&metrics.alloc_windows_stopped, windows.stopped_for_cost);
    raise_to(&metrics.alloc_windows_failed, windows.failed);
    raise_to(&metrics.alloc_processes_without_allocator, windows.without_allocator);
    raise_to(&metrics.alloc_nested_samples, windows.nested);
    metrics.set_alloc_windows(windows.open_ns, windows.cost_ns);
}

fn publish_stops(metrics: &Metrics, side: &'static str, stops: &[u64]) {
    for (stop, &count) in Stop::ALL.iter().zip(stops) {
        if *stop == Stop::End {
            metrics.complete_stacks.get_or_create(&SideLabels { side }).inc_by(count);
        }
        if stop.is_truncated() && count > 0 {
            let labels = TruncationLabels { reason: stop.name(), side };
            metrics.truncated_stacks.get_or_create(&labels).inc_by(count);
        }
    }
}

fn publish_frames(metrics: &Metrics, stats: &FrameStats) {
    let origins = [("kernel", stats.kernel), ("file", stats.file), ("jit", stats.jit)];
    let counts = origins
        .into_iter()
        .flat_map(|(origin, (yes, no))| [(origin, "yes", yes), (origin, "no", no)])
        .chain([("unmapped", "no", stats.unmapped)]);
    for (origin, resolved, count) in counts.filter(|(_, _, count)| *count > 0) {
        metrics.frames.get_or_create(&FrameLabels { origin, resolved }).inc_by(count);
    }
}

fn publish_symbolize(metrics: &Metrics, stats: &SymbolizeStats) {
    raise_to(&metrics.symbol_cache_hits, stats.cache_hits);
    raise_to(&metrics.symbol_cache_misses, stats.cache_misses);
    raise_to(&metrics.symbol_evictions, stats.evictions);
    raise_to(&metrics.symbol_failures, stats.parse_failures);
    raise_to(&metrics.symbol_deferrals, stats.binaries_deferred);
    metrics.symbol_cache_bytes.set(gauge(stats.cache_bytes as u64));
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// An error and its causes, for people.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
