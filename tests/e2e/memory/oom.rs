//! What the agent delivers of a process that the kernel ends for want of memory.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use everflame_tests::cgroup::Cgroup;
use everflame_tests::profile::Sample;
use everflame_tests::program::{Agent, Running, Server, wait_for};
use everflame_tests::stored::{of_process, stored};
use everflame_tests::workload::workload;
use tempfile::TempDir;

use super::{MIB, bytes_of};
use crate::take_turn;

const LIMIT_MIB: u64 = 192;

/// A group that ends what grows beyond the limit, or the reason why there is none, on stderr.
fn limited() -> Option<Cgroup> {
    match Cgroup::with_memory(LIMIT_MIB << 20) {
        Ok(group) => Some(group),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: no control group can be made: {error}");
            None
        }
    }
}

/// Runs `devour` there until the kernel ends it.
fn devour(group: &Cgroup, first_mib: &str, seconds: &str) -> Running {
    let mut command = group.command(&workload("devour"));
    let mut process = Running::start(command.args([first_mib, seconds]).stdout(Stdio::null()));
    let status = process.wait();
    assert_eq!(status.code(), None, "it has ended by itself: {}", process.log());
    process
}

/// The profile that the collector has of it, once it has it.
fn profile_of(server: &Server, pid: u32, dir: &Path) -> Vec<Sample> {
    let selector = format!("{{pid=\"{pid}\",oom=\"true\"}}");
    let mut samples = Vec::new();
    wait_for("its profile arrives", || {
        samples = stored(server, "alloc", &selector, None, dir);
        !samples.is_empty()
    });
    samples
}

/// Makes sure that it is what the limit allows; in MiB.
fn check_sum(samples: &[Sample]) -> f64 {
    let sum: f64 = samples.iter().map(|sample| sample.value as f64).sum();
    let limit = LIMIT_MIB as f64 * MIB;
    assert!((sum - limit).abs() <= 0.1 * limit, "{sum} of {limit}");
    sum / MIB
}

#[test]
fn growth_of_a_process_that_runs_out_of_memory_arrives_before_the_window_ends() {
    let Some(_turn) = take_turn() else { return };
    let Some(group) = limited() else { return };
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let arguments = ["--kinds", "cpu,alloc", "--window", "60s"];
    let agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    let victim = devour(&group, "48", "0");
    let ended = Instant::now();
    let samples = profile_of(&server, victim.pid(), dir.path());
    let elapsed = ended.elapsed();
    assert_eq!(agent.metric("everflame_agent_windows_total"), 0.0, "no window has ended");
    let sum = check_sum(&samples);
    println!("{sum:.1} MiB of {LIMIT_MIB}, {elapsed:?} after its end");
    let (first, second) = (bytes_of(&samples, "first_course"), bytes_of(&samples, "second_course"));
    assert!((first - 48.0 * MIB).abs() < 0.1 * 48.0 * MIB, "{first} bytes of 48 MiB");
    assert!(second > first, "{second} bytes, {first} before");
    let top = samples.iter().max_by_key(|sample| sample.value).unwrap();
    assert!(top.has("touch") && top.has("second_course") && top.has("main"), "{:?}", top.stack);
    // One task of it is marked, or more; there is one profile.
    assert!(agent.metric("everflame_agent_oom_victims_total") >= 1.0);
    assert_eq!(agent.metric("everflame_agent_oom_profiles_total"), 1.0);
}

#[test]
fn growth_in_windows_before_belongs_to_it() {
    let Some(_turn) = take_turn() else { return };
    let Some(group) = limited() else { return };
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let arguments = ["--kinds", "alloc", "--window", "1s"];
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    let victim = devour(&group, "96", "4");
    let samples = profile_of(&server, victim.pid(), dir.path());
    println!("{:.1} MiB of {LIMIT_MIB}", check_sum(&samples));
    for function in ["first_course", "second_course"] {
        let bytes = bytes_of(&samples, function);
        assert!((bytes - 96.0 * MIB).abs() < 0.1 * 96.0 * MIB, "{function}: {bytes} bytes");
    }
    // Its windows say the same, and what is asked for without a word of it counts nothing twice.
    std::thread::sleep(Duration::from_secs(2));
    assert!(agent.process.terminate().success(), "{}", agent.process.log());
    check_sum(&stored(&server, "alloc", &of_process(victim.pid()), None, dir.path()));
}
