//! Whether the parts of a thread's life add up: time on a CPU, waits, and time on a run queue, all
//! recorded at once, against the time that passed.
//!
//! Waits and run-queue delay are measured; CPU time is sampled, so the sum has a sampling error.
//! The same is looked at for a minute by a bench and for a shorter time by a test.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::profile::{Sample, in_span, is_run_queue, ns};
use crate::program::{Agent, Server};
use crate::stored::{of_process, stored};
use crate::waits::{self, Program, ThreadTruth};

/// CPU samples a second.
const RATE_HZ: u32 = 97;

/// The most that a sum may be off, as a share of the time that passed, after [`FULL_SPAN`].
const FULL_ERROR: f64 = 0.02;

/// How long the programs go on for that.
pub const FULL_SPAN: Duration = Duration::from_secs(60);

/// What a thread says of its time, and what was recorded of it.
#[derive(Clone, Debug)]
pub struct Totals {
    /// What it says.
    pub thread: ThreadTruth,
    /// CPU samples times their period, nanoseconds.
    pub on_cpu_ns: f64,
    /// Waits, nanoseconds.
    pub waits_ns: f64,
    /// Ready, but without a CPU, nanoseconds.
    pub run_queue_ns: f64,
}

impl Totals {
    fn new(thread: ThreadTruth, cpu: &[Sample], off_cpu: &[Sample]) -> Self {
        let queued = ns(in_span(off_cpu, &thread).filter(is_run_queue));
        Self {
            on_cpu_ns: ns(in_span(cpu, &thread)),
            waits_ns: ns(in_span(off_cpu, &thread)) - queued,
            run_queue_ns: queued,
            thread,
        }
    }

    /// By how much the parts are more than the whole, as a share of it.
    pub fn error(&self) -> f64 {
        self.error_with(self.on_cpu_ns)
    }

    fn error_with(&self, on_cpu_ns: f64) -> f64 {
        let wall_ns = self.thread.wall_ns as f64;
        (on_cpu_ns + self.waits_ns + self.run_queue_ns - wall_ns) / wall_ns
    }

    /// The most that it may be.
    ///
    /// Ticks come every `T = 1 / rate`. A thread that is on a CPU for `c` of the time `W` is hit
    /// by about `c W / T` of them, which is off by `sqrt(c (1 - c) W / T)` ticks of `T` each if
    /// it leaves its CPU at random, and by less if it stays there for longer than `T`. As a share
    /// of `W` that is
    ///
    /// ```text
    /// sqrt(c (1 - c) T / W) <= sqrt(T / (4 W)) = 0.66 % for W = 60 s,
    /// ```
    ///
    /// so 2 % of a minute are three standard errors of the worst thread, and for any other time
    ///
    /// ```text
    /// tolerance(W) = 2 % * sqrt(60 s / W).
    /// ```
    pub fn tolerance(&self) -> f64 {
        let wall = self.thread.wall_ns as f64 / 1e9;
        FULL_ERROR * (FULL_SPAN.as_secs_f64() / wall).sqrt()
    }

    /// Whether it is that at most. What the host takes from this machine is in no part.
    pub fn is_met(&self) -> bool {
        self.is_within(self.error())
    }

    /// The same with the thread's own clock in place of CPU samples. Those see too little of a
    /// thread that runs for microseconds after each interrupt of a disk, and the less the busier the
    /// machine is.
    pub fn is_met_by_its_clock(&self) -> bool {
        self.is_within(self.error_with(self.thread.cpu_ns as f64))
    }

    fn is_within(&self, error: f64) -> bool {
        let stolen = self.thread.stolen_ns as f64 / self.thread.wall_ns as f64;
        (-self.tolerance() - stolen..=self.tolerance()).contains(&error)
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wall_ns = self.thread.wall_ns as f64;
        let percent = |ns: f64| 100.0 * ns / wall_ns;
        write!(
            f,
            "{:<10} {:7.3} s = {:6.2} % on cpu ({:.2} % by its clock) + {:6.2} % waits + {:6.2} % \
             run queue {:+.2} % (up to {:.2} %); {} switches, {:.2} % stolen",
            self.thread.name,
            wall_ns / 1e9,
            percent(self.on_cpu_ns),
            percent(self.thread.cpu_ns as f64),
            percent(self.waits_ns),
            percent(self.run_queue_ns),
            100.0 * self.error(),
            100.0 * self.tolerance(),
            self.thread.voluntary + self.thread.involuntary,
            percent(self.thread.stolen_ns as f64),
        )
    }
}

/// What an agent of kinds `cpu` and `offcpu` delivers of threads that wait, compute, and do both;
/// and how many samples it lost. `dir` is not to be memory, as one of them reads from a disk.
pub fn measure(span: Duration, dir: &Path) -> (Vec<Totals>, f64) {
    let dir = TempDir::new_in(dir).expect("a temporary directory");
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let rate = RATE_HZ.to_string();
    let arguments = ["--kinds", "cpu,offcpu", "--window", "5s", "--cpu-rate-hz", &rate];
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    let program = Program::start(&mut waits::busy_waits(span, &dir.path().join("direct")));
    let pid = program.pid();
    let truth = program.finish();
    let lost = agent.metric("everflame_agent_lost_samples_total");
    assert!(agent.process.terminate().success(), "{}", agent.process.log());
    let stored = |kind| stored(&server, kind, &of_process(pid), None, dir.path());
    let (cpu, off_cpu) = (stored("cpu"), stored("offcpu"));
    let threads = truth.threads().into_iter();
    (threads.map(|thread| Totals::new(thread, &cpu, &off_cpu)).collect(), lost)
}
