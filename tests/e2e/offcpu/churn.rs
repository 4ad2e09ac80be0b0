//! Threads that come and go leave nothing behind.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use everflame_tests::program::{Agent, Server, wait_for};
use everflame_tests::waits::{self, Program};
use everflame_tests::workload::compile;
use tempfile::TempDir;

use super::{Findings, count, is_run_queue, ns, of_process, stored};
use crate::take_turn;

/// More than there are thread ids before they are used again (32768, unless the machine is set
/// otherwise), so that what is kept of one thread would be taken for another's.
const THREADS: usize = 40_000;
const DURATION: Duration = Duration::from_secs(25);
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
    let map_keys = compile("../e2e/offcpu/map_keys", &dir.path().join("map_keys"));
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), ARGUMENTS);
    let map = thread_map(agent.process.pid());
    // All that it allocates once, it has allocated then.
    Program::start(&mut waits::churn_threads(4000, Duration::from_secs(4))).finish();
    let windows = agent.metric("everflame_agent_windows_total");
    wait_for("two windows", || agent.metric("everflame_agent_windows_total") >= windows + 2.0);
    let before = agent.metric("everflame_agent_rss_bytes");

    let churn = Program::start(&mut waits::churn_threads(THREADS, DURATION));
    let pid = churn.pid();
    let truth = churn.finish();
    let mut findings = Findings::new();
    // What is dead both times has not just been about to go.
    let dead = dead_threads(&map_keys, map);
    std::thread::sleep(Duration::from_millis(200));
    let dead = dead.intersection(&dead_threads(&map_keys, map)).count();
    findings.note(dead == 0, format!("{dead} threads are gone and still in the map"));
    let rss = agent.metric("everflame_agent_rss_bytes");
    let grown = (rss - before) / f64::from(1 << 20);
    findings.note(grown < 16.0, format!("resident memory: {rss} bytes, {grown:+.1} MiB"));
    let untracked = agent.metric("everflame_agent_untracked_threads_total");
    findings.note(untracked == 0.0, format!("{untracked} threads untracked"));
    let lost = agent.metric("everflame_agent_lost_samples_total");
    findings.note(lost == 0.0, format!("{lost} samples lost"));
    assert!(agent.process.terminate().success(), "{}", agent.process.log());

    let samples = stored(&server, "offcpu", &of_process(pid), dir.path());
    let waits = samples.iter().filter(|sample| sample.has("brief_waits") && !is_run_queue(sample));
    // A sample stands for some thirty waits: with 2,000 samples the standard error is 2 %.
    let expected = 2.0 * truth.number("churn", "created") as f64;
    findings.within("waits", count(waits.clone()), expected, 0.1 * expected);
    // Each goes on for 0.2 ms, and until a timer says so. A wait that is mistaken for one since
    // another thread of that id would be as long as a hundred thousand of them.
    let mean = ns(waits.clone()) / count(waits);
    findings.within("mean of waits, ns", mean, 500_000.0, 320_000.0);
}
