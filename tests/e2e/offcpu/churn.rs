//! Threads that come and go leave nothing behind.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use everflame_tests::profile::Sample;
use everflame_tests::program::{Agent, Server, wait_for};
use everflame_tests::waits::{self, Program};
use everflame_tests::workload::compile;
use tempfile::TempDir;

use super::{Findings, count, is_run_queue, ns, of_process, stored};
use crate::take_turn;

/// In each of two rounds. Both together are more than there are thread ids before they are used
/// again (32768, unless the machine is set otherwise), so that what is kept of one thread would be
/// taken for another's.
const THREADS: usize = 20_000;
/// As fast as they can be.
const DURATION: Duration = Duration::from_millis(100);
const ARGUMENTS: &[&str] = &["--kinds", "cpu,offcpu", "--window", "2s"];

/// The map in which an agent keeps what it knows of each thread, by its id for the kernel.
fn thread_map(agent: u32) -> u32 {
    let number = |info: &str, key: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line?.trim().parse().ok()
    };
    // A hash map from thread ids to what is kept of threads.
    let is_thread_map = |info: &str| {
        number(info, "map_type") == Some(1)
            && number(info, "key_size") == Some(4)
            && number(info, "value_size")
                == Some(size_of::<everflame_agent_common::wait::Thread>() as u64)
    };
    let map = std::fs::read_dir(format!("/proc/{agent}/fdinfo"))
        .unwrap()
        .filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok())
        .find(|info| is_thread_map(info))
        .and_then(|info| u32::try_from(number(&info, "map_id")?).ok());
    // The agent has one.
    map.unwrap()
}

/// The threads that the map knows but the kernel does not any more.
fn dead_threads(map_keys: &Path, map: u32) -> HashSet<u32> {
    let output = Command::new(map_keys).arg(map.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let keys: Vec<u32> = text.lines().map(|key| key.parse().unwrap()).collect();
    assert!(!keys.is_empty(), "the host has threads");
    // Not only processes are found there, though only they are listed.
    keys.into_iter().filter(|tid| !Path::new(&format!("/proc/{tid}")).exists()).collect()
}

#[test]
fn threads_that_come_and_go_leave_nothing_behind() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let map_keys = compile("map_keys", &dir.path().join("map_keys"));
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), ARGUMENTS);
    let map = thread_map(agent.process.pid());
    let mut findings = Findings::new();
    let mut rounds = Vec::new();
    let mut rss_mib = Vec::new();
    for _ in 0..2 {
        let churn = Program::start(&mut waits::churn_threads(THREADS, DURATION));
        let pid = churn.pid();
        rounds.push((pid, churn.finish()));
        // What is dead both times has not just been about to go.
        let dead = dead_threads(&map_keys, map);
        std::thread::sleep(Duration::from_millis(200));
        let dead = dead.intersection(&dead_threads(&map_keys, map)).count();
        findings.note(dead == 0, format!("{dead} threads are gone and still in the map"));
        let windows = agent.metric("everflame_agent_windows_total");
        wait_for("two windows", || agent.metric("everflame_agent_windows_total") >= windows + 2.0);
        rss_mib.push(agent.metric("everflame_agent_rss_bytes") / f64::from(1 << 20));
    }
    // What it needs for such threads it has after the first round.
    let grown = rss_mib[1] - rss_mib[0];
    findings.note(grown < 8.0, format!("resident memory: {grown:+.1} MiB, {rss_mib:.1?}"));
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
    // another thread of that id would be as long as tens of thousands of them.
    let mean = ns(waits.clone()) / count(waits);
    findings.within("mean of waits, ns", mean, 350_000.0, 170_000.0);
}
