//! Many waits that are much shorter than what a sample stands for.

use std::process::Command;
use std::time::Duration;

use everflame_tests::profile::Sample;
use everflame_tests::waits::{self, ThreadTruth};
use everflame_tests::workload::compile;
use tempfile::TempDir;

use super::{Findings, Recorded, check_time_off_cpu, count, in_span, is_run_queue, ns};
use crate::take_turn;

/// Expects as many waits as the kernel has counted voluntary switches.
fn check_count(findings: &mut Findings, thread: &ThreadTruth, samples: &[Sample]) {
    let waits = in_span(samples, thread).filter(|sample| !is_run_queue(sample));
    let expected = thread.voluntary as f64;
    findings.within(&format!("{} waits", thread.name), count(waits), expected, 0.05 * expected);
}

#[test]
fn short_sleeps_are_sampled_without_bias() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let program = compile("../e2e/offcpu/short_sleeps", &dir.path().join("short_sleeps"));
    let recorded = Recorded::start(Command::new(program).arg("8"));
    let (truth, samples) = recorded.finish();
    let mut findings = Findings::new();
    for thread in truth.threads() {
        check_time_off_cpu(&mut findings, &thread, &samples);
        check_count(&mut findings, &thread, &samples);
    }
}

#[test]
fn turns_of_microseconds_are_sampled_without_bias() {
    let Some(_turn) = take_turn() else { return };
    /// The most that a switch may take from where its tracepoint is to where the next thread
    /// is told that it runs.
    const SWITCH_NS: f64 = 2000.0;
    let mut findings = Findings::new();
    for how in ["futex", "pipe"] {
        let recorded = Recorded::start(&waits::pingpong(how, Duration::from_secs(5), true));
        let (truth, samples) = recorded.finish();
        for thread in truth.threads() {
            check_count(&mut findings, &thread, &samples);
            // For the kernel one thread's time on a CPU ends where that of the next begins;
            // the switch between them, with our programs, is off the CPU for both of them,
            // and as long as a turn here. So the clocks give bounds only.
            let off = (thread.wall_ns - thread.cpu_ns) as f64;
            let switches = (thread.voluntary + thread.involuntary) as f64;
            let most = SWITCH_NS * switches;
            let found = ns(in_span(&samples, &thread));
            let what = format!("{how}: {} off cpu", thread.name);
            findings.within(&what, found, off + most / 2.0, most / 2.0 + 0.02 * off);
        }
    }
}
