//! Threads that come and go leave nothing behind.

use std::collections::HashMap;
use std::time::Duration;

use everflame_tests::profile::Sample;
use everflame_tests::program::{Agent, Server, wait_for};
use everflame_tests::waits::{self, Program};
use tempfile::TempDir;

use super::{Findings, count, is_run_queue, ns, of_process, stored};
use crate::take_turn;

/// In each of two rounds. Both together are more than there are thread ids before they are used
/// again (32768, unless the machine is set otherwise).
const THREADS: usize = 20_000;
/// As fast as they can be.
const DURATION: Duration = Duration::from_millis(100);
const ARGUMENTS: &[&str] = &["--kinds", "cpu,offcpu", "--window", "2s"];

/// Objects of each size that the kernel has allocated for itself, by the name of their cache.
/// What is kept of a thread is one of them, which goes with the thread; no map counts these.
fn kernel_objects() -> HashMap<String, i64> {
    let caches = std::fs::read_to_string("/proc/slabinfo").unwrap();
    let cache = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next().filter(|name| name.starts_with("kmalloc"))?;
        Some((name.to_owned(), words.next()?.parse().ok()?))
    };
    let objects: HashMap<_, _> = caches.lines().filter_map(cache).collect();
    assert!(!objects.is_empty(), "{caches}");
    objects
}

/// How many more there are of one size than there were, of that which grew most.
fn grown(before: &HashMap<String, i64>) -> i64 {
    let now = kernel_objects();
    now.iter().map(|(name, count)| count - before.get(name).unwrap_or(&0)).max().unwrap()
}

#[test]
fn threads_that_come_and_go_leave_nothing_behind() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), ARGUMENTS);
    let objects = kernel_objects();
    let mut findings = Findings::new();
    let mut rounds = Vec::new();
    let mut rss_mib = Vec::new();
    for _ in 0..2 {
        let churn = Program::start(&mut waits::churn_threads(THREADS, DURATION));
        let pid = churn.pid();
        rounds.push((pid, churn.finish()));
        let windows = agent.metric("everflame_agent_windows_total");
        wait_for("two windows", || agent.metric("everflame_agent_windows_total") >= windows + 2.0);
        rss_mib.push(agent.metric("everflame_agent_rss_bytes") / f64::from(1 << 20));
    }
    // What it needs for such threads it has after the first round.
    let growth = rss_mib[1] - rss_mib[0];
    findings.note(growth < 8.0, format!("resident memory: {growth:+.1} MiB, {rss_mib:.1?}"));
    // One for each thread would be twice as many. The kernel frees some things late.
    wait_for("the kernel's memory of dead threads", || grown(&objects) < THREADS as i64);
    let untracked = agent.metric("everflame_agent_untracked_threads_total");
    findings.note(untracked == 0.0, format!("{untracked} threads untracked"));
    let lost = agent.metric("everflame_agent_lost_samples_total");
    findings.note(lost == 0.0, format!("{lost} samples lost"));
    assert!(agent.process.terminate().success(), "{}", agent.process.log());

    let samples: Vec<Sample> = rounds
        .iter()
        .flat_map(|(pid, _)| stored(&server, "offcpu", &of_process(*pid), None, dir.path()))
        .collect();
    let waits = samples.iter().filter(|sample| sample.has("brief_waits") && !is_run_queue(sample));
    // A sample stands for some thirty waits: with 1,000 samples the standard error is 3 %.
    let created: u64 = rounds.iter().map(|(_, truth)| truth.number("churn", "created")).sum();
    let expected = 2.0 * created as f64;
    findings.within("waits", count(waits.clone()), expected, 0.12 * expected);
    // Each goes on for 0.2 ms, and until a timer says so. A wait that is mistaken for one since
    // another thread of that id began would be as long as tens of thousands of them.
    let mean = ns(waits.clone()) / count(waits);
    findings.within("mean of waits, ns", mean, 350_000.0, 170_000.0);
}
