//! Agent, collector and command line together.

use std::io::Write as _;
use std::process::{Command, Stdio};

use everflame_tests::program::{Agent, Running, Server, binary, everflame, http_get, wait_for};
use everflame_tests::workload::workload;
use serde_json::Value;
use tempfile::TempDir;

use crate::take_turn;

const WINDOW: &[&str] = &["--window", "2s", "--cpu-rate-hz", "97"];

fn burn(seconds: &str, threads: &str) -> Running {
    Running::start(Command::new(workload("burn")).args([seconds, threads]).stdout(Stdio::null()))
}

/// Runs the command line against a collector and reads its JSON.
fn ask(server: &Server, arguments: &[&str]) -> Value {
    let output = everflame()
        .args(arguments)
        .args(["--format", "json", "--server", &server.url()])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Sum of `samples/count` over everything that the collector has.
fn stored_samples(server: &Server) -> i64 {
    let output = everflame()
        .args(["top", "--format", "json", "--sample-type", "samples", "--server", &server.url()])
        .output()
        .unwrap();
    // Exit code 2: nothing there yet.
    if output.status.code() == Some(2) {
        return 0;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let top: Value = serde_json::from_slice(&output.stdout).unwrap();
    top["total_value"].as_i64().unwrap()
}

fn function<'a>(table: &'a Value, name: &str) -> &'a Value {
    let functions = table["functions"].as_array().unwrap();
    functions
        .iter()
        .find(|function| function["name"] == name)
        .unwrap_or_else(|| panic!("{name} is not in {table:#}"))
}

#[test]
fn samples_travel_from_the_kernel_to_the_command_line() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let mut arguments = WINDOW.to_vec();
    arguments.extend(["--label", "env=test"]);
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    let mut busy = burn("6", "1");
    busy.wait();
    assert!(agent.process.terminate().success(), "{}", agent.process.log());

    let top = ask(&server, &["top", "--selector", r#"{service="burn",env="test"}"#]);
    let (hot, cold) = (function(&top, "hot_path"), function(&top, "cold_path"));
    let (hot, cold) = (hot["self_value"].as_f64().unwrap(), cold["self_value"].as_f64().unwrap());
    let share = hot / (hot + cold);
    // Some 580 samples: the standard error is below 2 %.
    assert!((share - 0.75).abs() < 0.08, "{top:#}");

    let services = ask(&server, &["services"]);
    assert!(services.to_string().contains("burn"), "{services:#}");
    let (status, kinds) = http_get(&server.address, "/api/v1/kinds");
    assert_eq!(status, 200);
    assert!(kinds.contains("cpu"), "{kinds}");
}

#[test]
fn two_moments_can_be_compared() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let record = |name: &str, program: &[&str]| {
        let path = dir.path().join(name);
        let recorded = everflame()
            .args(["record", "--rate-hz", "97", "--duration", "30s", "-o"])
            .arg(&path)
            .arg("--")
            .args(program)
            .output()
            .unwrap();
        assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
        path
    };
    let (burn, brief) = (workload("burn"), workload("brief"));
    let before = record("before.pb.gz", &[burn.to_str().unwrap(), "2", "1"]);
    let after = record("after.pb.gz", &[brief.to_str().unwrap(), "2000"]);
    let output =
        everflame().arg("diff").args([&before, &after]).args(["--format", "json"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let diff: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(function(&diff, "hot_path")["compare_self"], 0);
    assert_eq!(function(&diff, "brief_work")["base_self"], 0);
    assert!(function(&diff, "brief_work")["compare_self"].as_i64().unwrap() > 0);
}

#[test]
fn nothing_is_lost_while_the_collector_is_away() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let (data, spool) = (dir.path().join("data"), dir.path().join("spool"));
    let mut server = Server::start(&data, "127.0.0.1:0");
    let address = server.address.clone();
    let _busy = burn("120", "1");
    let mut agent = Agent::start(&server.url(), &spool, WINDOW);
    wait_for("the first window is stored", || stored_samples(&server) > 0);

    server.process.kill();
    wait_for("windows wait in the spool", || agent.metric("everflame_agent_spool_batches") >= 2.0);
    let (status, _) = http_get(&agent.metrics_address, "/healthz");
    assert_eq!(status, 200, "an agent without collector keeps profiling and is healthy");

    let server = Server::start(&data, &address);
    wait_for("the spool is empty", || agent.metric("everflame_agent_spool_batches") == 0.0);
    let counted = agent.metric("everflame_agent_samples_total");
    assert!(agent.process.terminate().success(), "{}", agent.process.log());
    let stored = stored_samples(&server);
    // The windows that closed after the metric was read only add.
    assert!(stored as f64 >= counted, "{stored} stored, {counted} taken");

    // Exactly once: a second agent run on the same spool has nothing left to send.
    assert!(agent.process.log().contains("stopping"));
    let left = std::fs::read_dir(&spool).unwrap().filter_map(Result::ok);
    let left = left.filter(|entry| entry.path().extension().is_some_and(|ext| ext == "batch"));
    assert_eq!(left.count(), 0, "{}", agent.process.log());
}

#[test]
fn spool_survives_a_restart_of_the_agent() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let spool = dir.path().join("spool");
    let _busy = burn("120", "1");
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = format!("http://{port}");
    let mut agent = Agent::start(&nowhere, &spool, WINDOW);
    wait_for("two windows wait", || agent.metric("everflame_agent_spool_batches") >= 2.0);
    let counted = agent.metric("everflame_agent_samples_total");
    agent.process.kill();

    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let agent = Agent::start(&server.url(), &spool, WINDOW);
    wait_for("what was spooled is stored", || stored_samples(&server) as f64 >= counted);
    drop(agent);
}

#[test]
fn agent_reports_what_it_does_and_costs() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let _busy = burn("120", "2");
    let agent = Agent::start(&server.url(), &dir.path().join("spool"), WINDOW);
    wait_for("three windows", || agent.metric("everflame_agent_windows_total") >= 3.0);
    let metrics = agent.metrics();
    for name in [
        "everflame_agent_samples_total",
        "everflame_agent_frames_total",
        "everflame_agent_symbol_cache_hits_total",
        "everflame_agent_bpf_program_runs_total",
        "everflame_agent_bpf_program_run_seconds_total",
        "everflame_agent_bpf_map_bytes",
        "everflame_agent_process_cpu_seconds_total",
        "everflame_agent_rss_bytes",
        "everflame_agent_memory_bytes",
        "everflame_agent_export_bytes_total",
    ] {
        assert!(agent.metric(name) > 0.0, "{name} in\n{metrics}");
    }
    assert_eq!(agent.metric("everflame_agent_lost_samples_total"), 0.0, "{metrics}");
    let (status, body) = http_get(&agent.metrics_address, "/debug/pprof/profile?seconds=1");
    assert_eq!(status, 200, "{body}");
}

/// A CPU that is taken offline, and comes back when this goes out of scope.
struct OfflineCpu(&'static str);

impl OfflineCpu {
    /// `None` where the machine does not let its CPUs go.
    fn take(switch: &'static str) -> Option<Self> {
        std::fs::write(switch, "0").ok().map(|()| Self(switch))
    }
}

impl Drop for OfflineCpu {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0, "1");
    }
}

/// Takes a CPU away for a while and expects its samples afterwards.
fn check_cpu_is_sampled_after(absence: impl FnOnce(&Agent, OfflineCpu)) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), WINDOW);
    let Some(offline) = OfflineCpu::take("/sys/devices/system/cpu/cpu1/online") else {
        let _ = writeln!(std::io::stderr(), "SKIPPED: cpu 1 cannot be taken offline here");
        return;
    };
    absence(&agent, offline);
    wait_for("the agent samples it again", || agent.process.log().contains("came online"));
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]).arg(workload("burn")).args(["3", "1"]).stdout(Stdio::null());
    Running::start(&mut command).wait();
    assert!(agent.process.terminate().success(), "{}", agent.process.log());
    let arguments = ["top", "--sample-type", "samples", "--selector", r#"{service="burn"}"#];
    let top = ask(&server, &arguments);
    // Three seconds at 97 Hz, all of them on that CPU.
    assert!(top["total_value"].as_i64().unwrap() > 200, "{top:#}");
}

#[test]
fn cpu_that_comes_back_is_sampled_again() {
    let Some(_turn) = take_turn() else { return };
    check_cpu_is_sampled_after(|agent, offline| {
        wait_for("the agent sees that it is gone", || agent.process.log().contains("went offline"));
        drop(offline);
    });
}

#[test]
fn cpu_that_was_away_unseen_is_sampled_again() {
    let Some(_turn) = take_turn() else { return };
    // Off and on within less than the agent's second between two looks.
    check_cpu_is_sampled_after(|_, offline| drop(offline));
}

#[test]
fn log_says_what_is_sampled_whatever_the_kinds() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    // The kernel's word on how the ends of waits are seen.
    let asked = Command::new(binary("everflame-agent"))
        .args(["capabilities", "--format", "json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let end = report["waits"]["end"].as_str();
    for kinds in ["cpu", "offcpu", "lock", "cpu,offcpu", "cpu,lock", "offcpu,lock"] {
        let has = |kind| kinds.split(',').any(|each| each == kind);
        let has_waits = has("offcpu") || has("lock");
        if has_waits && end.is_none() {
            continue;
        }
        // Nobody listens there: it is about the agent alone.
        let agent = Agent::start("http://127.0.0.1:1", dir.path(), &["--kinds", kinds]);
        let log = agent.process.log();
        let line = |text: &str| log.lines().find(|line| line.contains(text));
        let begun = line("sampling has begun").unwrap();
        assert!(begun.contains(&format!("kinds=\"{kinds}\"")), "{begun}");
        assert_eq!(line("sampling on-CPU stacks").is_some(), has("cpu"), "{kinds}:\n{log}");
        let waits = line("following waits");
        assert_eq!(waits.is_some(), has_waits, "{kinds}:\n{log}");
        if let (Some(waits), Some(end)) = (waits, end) {
            assert!(waits.contains(&format!("end=\"{end}\"")), "{waits}");
            assert!(waits.contains(&format!("locks={}", has("lock"))), "{waits}");
        }
    }
}
