//! Many waits that are much shorter than what a sample stands for.

use std::process::Command;
use std::time::Duration;

use everflame_tests::profile::Sample;
use everflame_tests::waits::{self, ThreadTruth};
use everflame_tests::workload::compile;
use tempfile::TempDir;

use super::{Cpus, Findings, Recorded, check_time_off_cpu, count, in_span, is_run_queue, ns};
use crate::take_turn;

/// Expects as many waits, of all these threads, as the kernel has counted voluntary switches.
fn check_count(findings: &mut Findings, all: &[(ThreadTruth, f64)], tolerance: f64) {
    let expected: f64 = all.iter().map(|(thread, _)| thread.voluntary as f64).sum();
    let found = all.iter().map(|(_, waits)| waits).sum();
    findings.within("waits", found, expected, tolerance * expected);
}

/// How many waits a thread's samples stand for.
fn waits_of(thread: &ThreadTruth, samples: &[Sample]) -> f64 {
    count(in_span(samples, thread).filter(|sample| !is_run_queue(sample)))
}

#[test]
fn short_sleeps_are_sampled_without_bias() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let program = compile("short_sleeps", &dir.path().join("short_sleeps"));
    let recorded = Recorded::start(Command::new(program).arg("10"));
    let (truth, samples) = recorded.finish();
    let mut findings = Findings::new();
    let mut all = Vec::new();
    for thread in truth.threads() {
        let (wall, cpu) = (thread.wall_ns as f64, thread.cpu_ns as f64);
        let found = ns(in_span(&samples, &thread));
        findings.within(&format!("{} off cpu", thread.name), found, wall - cpu, 0.02 * wall);
        let waits = waits_of(&thread, &samples);
        all.push((thread, waits));
    }
    check_count(&mut findings, &all, 0.05);
}

#[test]
fn turns_of_microseconds_are_sampled_without_bias() {
    let Some(_turn) = take_turn() else { return };
    let mut findings = Findings::new();
    let mut all = Vec::new();
    for how in ["futex", "pipe"] {
        // On one CPU, which is never idle then.
        let recorded = Recorded::start(&waits::pingpong(how, Duration::from_secs(5), true));
        let (truth, samples) = recorded.finish();
        for thread in truth.threads() {
            check_time_off_cpu(&mut findings, &thread, &samples, Cpus::Busy);
            let waits = waits_of(&thread, &samples);
            all.push((thread, waits));
        }
    }
    // Two hundred samples, of waits whose lengths differ by a third: the standard error of how
    // many they stand for is 2 %.
    check_count(&mut findings, &all, 0.08);
}
