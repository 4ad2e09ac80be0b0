//! A load that forks and faults, and does nothing else.

use std::process::{Command, Stdio};
use std::time::Instant;

use everflame_tests::cost::median;

/// Processes of a run: half a second or so.
pub(crate) const PROCESSES: usize = 800;

/// Runs that make a value.
const RUNS: usize = 3;

/// What a run takes, in seconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Run {
    /// By the clock on the wall.
    pub(crate) wall: f64,
    /// Of the shell and what it runs on all CPUs: hardly more when others want the CPUs as well.
    pub(crate) cpu: f64,
}

/// What a shell takes to run a program that does nothing, many times: the medians of some runs.
pub(crate) fn measure() -> Run {
    let runs = [(); RUNS].map(|()| run());
    Run { wall: median(&mut runs.map(|run| run.wall)), cpu: median(&mut runs.map(|run| run.cpu)) }
}

/// One run.
pub(crate) fn run() -> Run {
    let load = format!("i=0; while [ $i -lt {PROCESSES} ]; do /bin/true; i=$((i+1)); done");
    let begin = Instant::now();
    // It says the CPU time of children to a millisecond.
    let output = Command::new("bash")
        .args(["-c", r#"TIMEFORMAT="%3U %3S"; time sh -c "$0""#, &load])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output.status);
    let wall = begin.elapsed().as_secs_f64();
    let times = String::from_utf8_lossy(&output.stderr);
    let cpu = times.split_whitespace().map(|time| time.parse::<f64>().unwrap()).sum();
    Run { wall, cpu }
}
