//! Drives the collector and fills windows: what the agent and a recording have in common.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::aggregate::{Aggregator, Window};
use crate::collect::{
    Clock, CollectConfig, CollectError, CollectStats, Collector, Event, Waker, monotonic_ns,
    period_ns,
};
use crate::identity::{ProcessIdentity, identify};
use crate::process::{Process, ProcessTable};
use crate::profile::WindowTime;
use crate::target::{Target, TargetFilter};

/// Samples wait in the ring buffer at most this long.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// A process that ended is remembered this long, for samples that come late.
const EXITED_GRACE: Duration = Duration::from_secs(1);

/// A window that has ended.
#[derive(Debug)]
pub struct ClosedWindow {
    /// What was sampled.
    pub window: Window,
    /// When.
    pub time: WindowTime,
}

/// Samples and adds up, on the thread that calls it.
pub struct Profiler {
    collector: Collector,
    processes: ProcessTable,
    filter: TargetFilter,
    aggregator: Aggregator,
    period_ns: u64,
    window_start_ns: u64,
}

impl Profiler {
    /// Starts to sample.
    pub fn start(config: &CollectConfig, filter: TargetFilter) -> Result<Self, CollectError> {
        let collector = Collector::start(config)?;
        Ok(Self {
            collector,
            processes: ProcessTable::default(),
            filter,
            aggregator: Aggregator::default(),
            period_ns: period_ns(config.cpu_rate_hz),
            window_start_ns: monotonic_ns(),
        })
    }

    /// A handle that ends [`Self::run_until`] early.
    pub fn waker(&self) -> std::io::Result<Waker> {
        self.collector.waker()
    }

    /// What drives the CPU samples.
    pub fn clock(&self) -> Clock {
        self.collector.clock()
    }

    /// Samples until `deadline`, until woken, or until the window is full.
    pub fn run_until(&mut self, deadline: Instant) -> Result<(), CollectError> {
        loop {
            let next = deadline.min(Instant::now() + POLL_INTERVAL);
            self.collector.wait(next)?;
            self.drain();
            let woken = Instant::now() < next;
            if woken || self.aggregator.is_full() || Instant::now() >= deadline {
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

    /// Ends the window and begins the next.
    pub fn take_window(&mut self) -> ClosedWindow {
        let now_ns = monotonic_ns();
        let duration_ns = now_ns.saturating_sub(self.window_start_ns);
        self.window_start_ns = now_ns;
        // Reckoned back from now: a wall clock that was set meanwhile cannot make a window
        // longer or shorter than it was.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_unix_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let time = WindowTime {
            start_unix_ns: signed(now_unix_ns.saturating_sub(duration_ns)),
            duration_ns: signed(duration_ns),
            cpu_period_ns: signed(self.period_ns),
        };
        ClosedWindow { window: self.aggregator.take(), time }
    }

    /// What was lost and what it cost, since the start.
    pub fn stats(&self) -> Result<CollectStats, CollectError> {
        self.collector.stats()
    }

    /// Numbers of processes and of mappings that are known.
    pub fn table_len(&self) -> (usize, usize) {
        self.processes.len()
    }

    /// Events that wait for their turn.
    pub fn queue_depth(&self) -> usize {
        self.collector.queue_depth()
    }

    fn drain(&mut self) {
        let Self { collector, processes, filter, aggregator, .. } = self;
        collector.drain(|time_ns, event| match event {
            Event::Process(event) => {
                filter.observe(&event);
                processes.apply(time_ns, event);
            }
            Event::Sample(sample) => {
                let process = processes.get_mut(sample.pid);
                if filter.admits(&sample, process) {
                    let pid = sample.pid;
                    aggregator.add(sample, process, |process| identity_of(pid, process));
                }
            }
        });
        let grace_ns = u64::try_from(EXITED_GRACE.as_nanos()).unwrap_or(u64::MAX);
        let horizon_ns = monotonic_ns().saturating_sub(grace_ns);
        processes.forget_exited(horizon_ns, |pid| Path::new(&format!("/proc/{pid}")).exists());
    }
}

/// What the side-band has seen wins over /proc, which a short-lived process has left.
fn identity_of(pid: u32, process: &Process) -> ProcessIdentity {
    let found = identify(Path::new("/proc"), pid);
    let executable = process.executable.as_deref().and_then(|path| path.rsplit('/').next());
    ProcessIdentity {
        comm: Some(process.name.clone()).filter(|name| !name.is_empty()).or(found.comm),
        executable: executable.map(str::to_owned).or(found.executable),
        is_kernel_thread: process.kernel_thread || found.is_kernel_thread,
        ..found
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
