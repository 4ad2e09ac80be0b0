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
use everflame_profile::encode_gz;
use everflame_profile::kind::Kind;
use everflame_proto::v1::{Batch, Label, ProfileRecord};
use thiserror::Error;
use tracing::{debug, info};

use crate::collect::{
    BlockConfig, Clock, CollectConfig, CollectError, LiveConfig, TcpConfig, WaitConfig, Waker,
    brief,
};
use crate::export::Exporter;
use crate::health::Health;
use crate::metrics::{KindLabels, Metrics, QueueLabels};
use crate::profile::{Symbols, build};
use crate::profiler::{ClosedWindow, Profiler};
use crate::publish::{
    publish_block, publish_collect, publish_frames, publish_live, publish_stops, publish_symbolize,
    publish_tcp, publish_unwind,
};
use crate::rotation::RotationConfig;
use crate::symbolize::{KernelStatus, SymbolizeConfig, Symbolizer};
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
    /// Which TCP connections are followed; `None` is none.
    pub tcp: Option<TcpConfig>,
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
            tcp: config.tcp,
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
            publish_tcp(metrics, &profiler, &stats.tcp);
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
            profiler.report_connections(false);
            waiting = offer(sender, profiler.take_window(), metrics);
        }
        let depth = metrics.queue_depth.get_or_create_owned(&QueueLabels { queue: "windows" });
        depth.set(i64::from(waiting.is_some()));
    }
    profiler.close_windows();
    profiler.report_waiting(Instant::now());
    profiler.settle(Instant::now() + SETTLE_TIME);
    profiler.report_held();
    profiler.report_connections(false);
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
            (Kind::Tcp, window.connections),
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
