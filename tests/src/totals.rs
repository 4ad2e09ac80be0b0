//! Whether the parts of a thread's life add up: time on a CPU, waits, and time on a run queue, all
//! recorded at once, against the time that passed.
//!
//! Waits and run-queue delay are measured. CPU time is sampled, but samples stand for what the
//! scheduler's account says (`everflame_agent_common::cpu_time`). The same is looked at for a
//! minute by a bench and for a shorter time by a test.

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

/// The most that a sum may be off, as a share of the time that passed.
pub const TOLERANCE: f64 = 0.02;

/// How long the programs go on in the bench.
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
        let wall_ns = self.thread.wall_ns as f64;
        (self.on_cpu_ns + self.waits_ns + self.run_queue_ns - wall_ns) / wall_ns
    }

    /// Whether that is [`TOLERANCE`] at most. What the host takes from this machine is in no part.
    pub fn is_met(&self) -> bool {
        let stolen = self.thread.stolen_ns as f64 / self.thread.wall_ns as f64;
        (-TOLERANCE - stolen..=TOLERANCE).contains(&self.error())
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wall_ns = self.thread.wall_ns as f64;
        let percent = |ns: f64| 100.0 * ns / wall_ns;
        write!(
            f,
            "{:<10} {:7.3} s = {:6.2} % on cpu ({:.2} % by its clock) + {:6.2} % waits + {:6.2} % \
             run queue {:+.2} %; {} switches, {:.2} % stolen",
            self.thread.name,
            wall_ns / 1e9,
            percent(self.on_cpu_ns),
            percent(self.thread.cpu_ns as f64),
            percent(self.waits_ns),
            percent(self.run_queue_ns),
            100.0 * self.error(),
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
