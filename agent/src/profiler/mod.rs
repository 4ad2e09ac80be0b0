//! Drives the collector and fills windows: what the agent and a recording have in common.

mod allocations;
mod arrival;
mod known;
mod sink;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use everflame_agent_common::stats::Program;

use crate::aggregate::{Aggregator, ProcessWindow, Window};
use crate::collect::{
    BpfError, Clock, CollectConfig, CollectError, CollectStats, Collector, Sample, Waker,
    monotonic_ns, period_ns,
};
use crate::disks::Disks;
use crate::history::{GrowthHistory, HISTORY_BYTES, HistoryStats};
use crate::identity::{identify_as_copy, identify_copy, identity_of};
use crate::joins::Joins;
use crate::kernel::WaitEnd;
use crate::live::{LiveHeaps, ObjectId};
use crate::process::{Process, ProcessTable};
use crate::profile::WindowTime;
use crate::rotation::Rotation;
use crate::target::{Target, TargetFilter};
use crate::windows::Windows;

pub use known::ProcessStats;

/// Samples wait in the ring buffer at most this long.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How often it is looked whether a window costs too much.
const WINDOW_POLL: Duration = Duration::from_millis(50);

/// A process that ended is remembered this long, for samples that come late.
const EXITED_GRACE_NS: u64 = 1_000_000_000;

/// How often processes are looked for whose exit was lost.
const SWEEP_INTERVAL_NS: u64 = 60_000_000_000;

/// A window that has ended.
#[derive(Debug)]
pub struct ClosedWindow {
    /// What was sampled.
    pub window: Window,
    /// When.
    pub time: WindowTime,
    /// It is what a process had grown by that the kernel ends for want of memory, all its life,
    /// and repeats what windows have.
    pub is_oom: bool,
}

/// Samples and adds up, on the thread that calls it.
pub struct Profiler {
    collector: Collector,
    processes: ProcessTable,
    filter: TargetFilter,
    aggregator: Aggregator,
    live: LiveHeaps,
    joins: Joins,
    disks: Disks,
    windows: Windows,
    rotation: Option<Rotation>,
    period_ns: u64,
    wait_period_ns: u64,
    /// Of growth, or of what is allocated in windows.
    alloc_period_bytes: u64,
    /// Whether it matters what futexes are.
    locks: bool,
    window_start_ns: u64,
    /// When sampling for the present window ended, if it has.
    window_end_ns: Option<u64>,
    next_sweep_ns: u64,
    vanished: u64,
    /// Samples whose stacks are being finished, by the numbers they were given.
    unfinished: HashMap<u64, Unfinished>,
    /// Those of the present drain, which have not been asked for yet.
    arrived: Vec<(u64, Unfinished)>,
    next_unfinished: u64,
    unfinished_refused: u64,
    /// If it is asked for whom the kernel ends for want of memory.
    history: Option<GrowthHistory>,
    /// Those that it has told of.
    victims: Vec<u32>,
}

/// A sample whose stack is being finished, and its process as it was then.
struct Unfinished {
    sample: Sample,
    process: Process,
    /// What it says the place of, if that is followed.
    object: Option<ObjectId>,
}

/// Samples that wait for their stacks, at most.
const MAX_UNFINISHED: usize = 2048;

/// How long a profile of a process that ends for want of memory waits for stacks.
const VICTIM_TIME: Duration = Duration::from_millis(500);

/// How often samples are taken in meanwhile.
const VICTIM_POLL: Duration = Duration::from_millis(50);

impl Profiler {
    /// Starts to sample.
    pub fn start(config: &CollectConfig, filter: TargetFilter) -> Result<Self, CollectError> {
        let collector = Collector::start(config)?;
        Ok(Self {
            collector,
            processes: ProcessTable::default(),
            filter,
            aggregator: Aggregator::default(),
            live: LiveHeaps::default(),
            joins: Joins::default(),
            disks: Disks::default(),
            windows: Windows::default(),
            rotation: None,
            period_ns: config.cpu_rate_hz.map_or(0, period_ns),
            wait_period_ns: config.waits.map_or(0, |waits| waits.period_ns),
            alloc_period_bytes: config
                .growth_period_bytes
                .or(config.window_period_bytes)
                .unwrap_or(0),
            locks: config.waits.is_some_and(|waits| waits.locks),
            window_start_ns: monotonic_ns(),
            window_end_ns: None,
            next_sweep_ns: monotonic_ns() + SWEEP_INTERVAL_NS,
            vanished: 0,
            unfinished: HashMap::new(),
            arrived: Vec::new(),
            next_unfinished: 0,
            unfinished_refused: 0,
            history: config.oom_victims.then(|| GrowthHistory::new(HISTORY_BYTES)),
            victims: Vec::new(),
        })
    }

    /// A handle that ends [`Self::run_until`] early.
    pub fn waker(&self) -> std::io::Result<Waker> {
        self.collector.waker()
    }

    /// What drives the CPU samples, if any are taken.
    pub fn clock(&self) -> Option<Clock> {
        self.collector.clock()
    }

    /// How the ends of waits are seen; `None` if they are not followed.
    pub fn wait_end(&self) -> Option<WaitEnd> {
        self.collector.wait_end()
    }

    /// Samples until `deadline`, until woken, until the window is full, or until there are
    /// [victims](Self::take_victims).
    pub fn run_until(&mut self, deadline: Instant) -> Result<(), CollectError> {
        loop {
            let poll = if self.windows.is_any_open() { WINDOW_POLL } else { POLL_INTERVAL };
            let next = deadline.min(Instant::now() + poll);
            self.collector.wait(next)?;
            self.drain();
            self.turn_windows()?;
            let woken = Instant::now() < next;
            let is_enough = self.aggregator.is_full() || !self.victims.is_empty();
            if woken || is_enough || Instant::now() >= deadline {
                return Ok(());
            }
        }
    }

    /// Wants other samples from now on.
    pub fn retarget(&mut self, target: Target) {
        // What happened before belongs to the former target.
        self.drain();
        self.filter.retarget(target);
    }

    /// Samples in the present window.
    pub fn samples(&self) -> u64 {
        self.aggregator.samples()
    }

    /// Whether the present window should be closed before its time.
    pub fn is_full(&self) -> bool {
        self.aggregator.is_full()
    }

    /// Adds the waits that go on to the present window, up to now. Their stacks are waited
    /// for until `deadline`; what is finished later goes into the next window.
    pub fn report_waiting(&mut self, deadline: Instant) {
        if self.wait_period_ns == 0 {
            return;
        }
        self.collector.report_waiting();
        self.drain();
        self.take_finished_until(deadline);
    }

    /// Ends the window and begins the next.
    pub fn take_window(&mut self) -> ClosedWindow {
        let waited_ns = self.window_end_ns.take().map_or(0, |end_ns| monotonic_ns() - end_ns);
        let now_ns = monotonic_ns() - waited_ns;
        let time = self.window_time(now_ns, waited_ns);
        self.window_start_ns = now_ns;
        let mut window = self.aggregator.take();
        self.identify_copies(&mut window);
        self.disks.forget();
        if let Some(history) = &mut self.history {
            history.add(&window, |pid, generation| self.processes.is_alive(pid, generation));
        }
        ClosedWindow { window, time, is_oom: false }
    }

    /// What the processes had grown by that the kernel has begun to end for want of memory since the
    /// last time, and how many of these processes there were.
    pub fn take_victims(&mut self) -> (Vec<ClosedWindow>, usize) {
        let victims = std::mem::take(&mut self.victims);
        if victims.is_empty() {
            return (Vec::new(), 0);
        }
        let is_of_victim = |unfinished: &Unfinished| victims.contains(&unfinished.sample.pid);
        let deadline = Instant::now() + VICTIM_TIME;
        while self.unfinished.values().any(is_of_victim) && Instant::now() < deadline {
            if let Some(finished) = self.collector.next_finished(Instant::now() + VICTIM_POLL) {
                self.take_finished(finished);
            }
            // Others go on.
            self.drain();
        }
        let late: Vec<Unfinished> = self
            .unfinished
            .extract_if(|_, unfinished| is_of_victim(unfinished))
            .map(|(_, unfinished)| unfinished)
            .collect();
        for unfinished in late {
            self.add(unfinished);
        }
        let time = self.window_time(monotonic_ns(), 0);
        let present = self.aggregator.window();
        let history = self.history.iter_mut();
        let grown = history
            .flat_map(|history| victims.iter().filter_map(|pid| history.take(*pid, present)));
        let profiles = grown.map(|window| ClosedWindow { window, time, is_oom: true }).collect();
        (profiles, victims.len())
    }

    /// What is kept for them.
    pub fn history_stats(&self) -> HistoryStats {
        self.history.as_ref().map(GrowthHistory::stats).unwrap_or_default()
    }

    /// The time from the window's start until `now_ns`, which was `waited_ns` ago.
    fn window_time(&self, now_ns: u64, waited_ns: u64) -> WindowTime {
        let duration_ns = now_ns.saturating_sub(self.window_start_ns);
        // Reckoned back from now: a wall clock that was set meanwhile cannot make a window
        // longer or shorter than it was.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_unix_ns =
            u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).saturating_sub(waited_ns);
        WindowTime {
            start_unix_ns: signed(now_unix_ns.saturating_sub(duration_ns)),
            duration_ns: signed(duration_ns),
            cpu_period_ns: signed(self.period_ns),
            wait_period_ns: signed(self.wait_period_ns),
            alloc_period_bytes: signed(self.alloc_period_bytes),
            has_ages: self.filter.is_of_recording(),
        }
    }

    /// Looks at the control groups of copies that are there still.
    fn identify_copies(&mut self, window: &mut Window) {
        for of_window in &mut window.processes {
            let ProcessWindow { pid, generation, .. } = *of_window;
            let Some(process) = self.processes.program_mut(pid, generation) else { continue };
            let Some(identity) = &mut process.identity else { continue };
            if process.cgroup_is_assumed {
                match identify_copy(Path::new("/proc"), pid, identity) {
                    Some(found) => *identity = Arc::new(found),
                    None => self.vanished += 1,
                }
                process.cgroup_is_assumed = false;
            }
            // A stack that was finished late brings what was known when it was taken.
            of_window.identity = Arc::clone(identity);
        }
    }

    /// What was lost and what it cost, since the start.
    pub fn stats(&self) -> Result<CollectStats, CollectError> {
        self.collector.stats()
    }

    /// Programs that the agent does without; see [`Collector::refused_programs`].
    pub fn refused_programs(&self) -> impl Iterator<Item = (Program, &BpfError)> {
        self.collector.refused_programs()
    }

    /// How long timed runs of the CPU sampler took; see [`Collector::cpu_run_times`].
    pub fn cpu_run_times(&self) -> Result<Vec<(u64, u64)>, CollectError> {
        self.collector.cpu_run_times()
    }

    /// Samples whose stacks could not be finished because too many waited.
    pub fn unfinished_refused(&self) -> u64 {
        self.unfinished_refused
    }

    /// Events that wait for their turn.
    pub fn queue_depth(&self) -> usize {
        self.collector.queue_depth()
    }

    /// Waits for stacks that are being finished, but not beyond `deadline`; then takes those
    /// that are not as they are. For the last window.
    pub fn settle(&mut self, deadline: Instant) {
        self.drain();
        self.window_end_ns = Some(monotonic_ns());
        self.take_finished_until(deadline);
        for (_, unfinished) in std::mem::take(&mut self.unfinished) {
            self.add(unfinished);
        }
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
