//! A load that forks and faults, and does nothing else.

use std::process::{Command, Stdio};
use std::time::Instant;

use everflame_tests::cost::median;

/// Processes of a run: half a second or so.
pub(crate) const PROCESSES: usize = 800;

/// Runs that make a value.
const RUNS: usize = 3;

/// Seconds that a shell takes to run a program that does nothing, many times: the median of some
/// runs.
pub(crate) fn seconds() -> f64 {
    median(&mut [(); RUNS].map(|()| run()))
}

/// One run.
pub(crate) fn run() -> f64 {
    let script = format!("i=0; while [ $i -lt {PROCESSES} ]; do /bin/true; i=$((i+1)); done");
    let begin = Instant::now();
    let status = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}");
    begin.elapsed().as_secs_f64()
}
