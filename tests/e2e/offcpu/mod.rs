//! Waits: how long threads are off their CPUs, what for, and where.
//!
//! The programs measure their own waits; what is recorded is compared with what they say.

mod brief;
mod churn;
mod known;
mod totals;
mod unfinished;
mod windows;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::Command;

use everflame_tests::profile::{self, Sample, in_span, is_run_queue, ns, of_thread, total};
use everflame_tests::program::everflame;
use everflame_tests::stored::{of_process, stored};
use everflame_tests::waits::{Program, ThreadTruth, Truth};
use tempfile::TempDir;

use crate::say;

/// What a sample of a wait stands for, and the most by which the recorded time of a thread's
/// waits can be off: for waiting, and for waiting for a CPU.
const PERIOD_NS: f64 = 10e6;

/// A program that is recorded from before its start to its end.
struct Recorded {
    program: Program,
    output: PathBuf,
    // Removed when dropped.
    _dir: TempDir,
}

impl Recorded {
    /// Starts to record, then the program; returns when that is ready to begin.
    fn start(command: &Command) -> Self {
        let dir = TempDir::new().unwrap();
        let output = dir.path().join("recorded.pb.gz");
        let mut record = everflame();
        record.args(["record", "--kind", "offcpu", "--duration", "300s", "-o"]).arg(&output);
        record.arg("--").arg(command.get_program()).args(command.get_args());
        Self { program: Program::start(&mut record), output, _dir: dir }
    }

    /// Waits for the program's end; what it says of itself, and what was recorded.
    fn finish(self) -> (Truth, Vec<Sample>) {
        let truth = self.program.finish();
        (truth, profile::read(&self.output).1)
    }
}

/// Whether the stack from its first `functions[0]` on is these functions, and below them nothing
/// but the beginning of a thread.
fn is_complete(sample: &Sample, functions: &[&str]) -> bool {
    let Some(at) = sample.stack.iter().position(|name| name == functions[0]) else { return false };
    let rest: Vec<&str> = sample.stack[at..].iter().map(String::as_str).collect();
    // libc's two have names if it has symbols.
    let is_libc = |frames: &[&str]| {
        frames.len() == 2
            && ["", "start_thread"].contains(&frames[0])
            && (frames[1].is_empty() || frames[1].contains("clone"))
    };
    rest.strip_prefix(functions).is_some_and(is_libc)
}

/// Sum of counts.
fn count<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> f64 {
    total(samples) as f64
}

/// What was found and what was expected of something; says so on stderr.
pub(crate) struct Findings {
    failed: Vec<String>,
}

impl Findings {
    pub(crate) fn new() -> Self {
        Self { failed: Vec::new() }
    }

    /// Expects a value within `tolerance` of `expected`, all in the same unit.
    pub(crate) fn within(&mut self, what: &str, found: f64, expected: f64, tolerance: f64) {
        let off = found - expected;
        let percent = 100.0 * off / expected;
        let text = format!(
            "{what}: {found:.0}, {expected:.0} expected, {percent:+.2} % (up to {:.2} %)",
            100.0 * tolerance / expected
        );
        self.note(off.abs() <= tolerance, text);
    }

    /// Expects what is within bounds that are not equally far from what is expected.
    pub(crate) fn between(
        &mut self,
        what: &str,
        found: f64,
        expected: f64,
        bounds: RangeInclusive<f64>,
    ) {
        let percent = |ns: f64| 100.0 * (ns - expected) / expected;
        let text = format!(
            "{what}: {found:.0}, {expected:.0} expected, {:+.2} % ({:.2} to {:.2} %)",
            percent(found),
            percent(*bounds.start()),
            percent(*bounds.end())
        );
        self.note(bounds.contains(&found), text);
    }

    /// Expects a share of at least `least`.
    pub(crate) fn share(&mut self, what: &str, part: f64, all: f64, least: f64) {
        let text = format!("{what}: {:.3} % of {all:.0}", 100.0 * part / all);
        self.note(all > 0.0 && part >= least * all, text);
    }

    pub(crate) fn note(&mut self, is_met: bool, text: String) {
        say(&text);
        if !is_met {
            self.failed.push(text);
        }
    }
}

impl Drop for Findings {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.failed.is_empty(), "{:#?}", self.failed);
        }
    }
}

/// Whether a program leaves its CPUs idle while it waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cpus {
    Busy,
    /// A thread that wakes an idle CPU is charged for CPU time from when it is put in the queue,
    /// as the kernel saves itself another look at the clock there (`rq_clock_skip_update`). That
    /// is before the CPU has left its idle state, and so before the thread runs.
    Idle,
}

impl Cpus {
    /// The most that the clocks may count as CPU time although the thread did not run yet.
    fn overcharged_ns(self, thread: &ThreadTruth) -> f64 {
        const MOST_NS: f64 = 5000.0;
        if self == Self::Idle { MOST_NS * thread.voluntary as f64 } else { 0.0 }
    }
}

/// Expects of a thread's span that the time off the CPU is what the clocks leave.
fn check_time_off_cpu(
    findings: &mut Findings,
    thread: &ThreadTruth,
    samples: &[Sample],
    cpus: Cpus,
) {
    let expected = (thread.wall_ns - thread.cpu_ns) as f64;
    let found = ns(in_span(samples, thread));
    let least = 0.98 * (expected - thread.stolen_ns as f64);
    let most = 1.02 * (expected + cpus.overcharged_ns(thread));
    findings.between(&format!("{} off cpu", thread.name), found, expected, least..=most);
}
