//! What the agent costs, measured on whole programs of this host in one run.
//!
//! Prints lines of `name value unit`. Timings of a shared machine are noisy, so what is
//! compared runs interleaved and medians are given. Run it with `cargo xtask bench agent`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a bench prints its figures and fails by panicking"
)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use everflame_tests::cost::{BpfPrograms, BpfStats, cpu_seconds, median, status_mib};
use everflame_tests::program::{Agent, Running, Server};
use everflame_tests::workload::workload;
use tempfile::TempDir;

/// Before figures are taken: start-up, first windows, first look at every binary.
const WARM_UP: Duration = Duration::from_secs(25);
const SPAN: Duration = Duration::from_secs(60);

const ROUNDS: usize = 15;
/// Some seconds of work for each thread.
const MEGA_ITERATIONS: &str = "2500";

fn main() {
    if !everflame_tests::bpf_is_permitted() {
        return;
    }
    let threads = std::thread::available_parallelism().unwrap().get().to_string();
    eprintln!("agent on busy cpus, {SPAN:?} at each rate ...");
    for rate in ["19", "97"] {
        steady(rate, &threads);
    }
    perf_record(&threads);
    eprintln!("agent beside short-lived processes, {SPAN:?} ...");
    churn();
    eprintln!("slowdown of fixed work, {ROUNDS} interleaved rounds ...");
    slowdown(&threads);
}

/// All CPUs busy with one program.
fn steady(rate: &str, threads: &str) {
    let load = || {
        let program = Running::start(
            Command::new(workload("burn")).args(["600", threads]).stdout(Stdio::null()),
        );
        vec![program]
    };
    report(&format!("busy_{rate}hz"), rate, load);
}

/// What `perf record` takes for as many samples, without symbolising, where it is installed.
/// Its kernel side runs in the interrupt and is in nobody's CPU time.
fn perf_record(threads: &str) {
    if Command::new("perf").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("perf is not installed, nothing to compare with");
        return;
    }
    let dir = TempDir::new().unwrap();
    let _load =
        Running::start(Command::new(workload("burn")).args(["600", threads]).stdout(Stdio::null()));
    let mut command = Command::new("perf");
    command.args(["record", "-a", "-g", "-e", "cpu-clock", "-F", "97", "-o"]);
    let perf = Running::start(command.arg(dir.path().join("perf.data")).stdout(Stdio::null()));
    std::thread::sleep(Duration::from_secs(5));
    let (before, begin) = (cpu_seconds(perf.pid()), Instant::now());
    std::thread::sleep(SPAN / 2);
    let seconds = begin.elapsed().as_secs_f64();
    print(
        "perf_record_97hz",
        "cpu",
        100.0 * (cpu_seconds(perf.pid()) - before) / seconds,
        "% of one core",
    );
}

/// Compilers that come and go, each with its loader, libraries and temporary files.
fn churn() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/burn.c");
    let script = format!("while :; do cc -O2 -g -c {} -o /dev/null; done", source.display());
    let load = || {
        let shell =
            || Running::start(Command::new("sh").args(["-c", &script]).stdout(Stdio::null()));
        vec![shell(), shell()]
    };
    report("churn_19hz", "19", load);
}

/// Runs an agent beside a load and prints what it cost.
fn report(name: &str, rate: &str, load: impl FnOnce() -> Vec<Running>) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let _load = load();
    let mut agent =
        Agent::start(&server.url(), &dir.path().join("spool"), &["--cpu-rate-hz", rate]);
    let pid = agent.process.pid();
    std::thread::sleep(WARM_UP);

    let stats = BpfStats::on();
    let programs = BpfPrograms::of(pid);
    let (cpu_before, bpf_before) = (cpu_seconds(pid), programs.run_time());
    let estimate_before = agent.metric("everflame_agent_bpf_program_run_seconds_total");
    let runs_before = agent.metric("everflame_agent_bpf_program_runs_total");
    let begin = Instant::now();
    std::thread::sleep(SPAN);
    let seconds = begin.elapsed().as_secs_f64();
    let (cpu, bpf) = (cpu_seconds(pid) - cpu_before, programs.run_time().since(bpf_before));
    drop(stats);
    let bpf_seconds = bpf.ns as f64 / 1e9;

    let samples = agent.metric("everflame_agent_samples_total");
    let estimate = agent.metric("everflame_agent_bpf_program_run_seconds_total") - estimate_before;
    let estimated_runs = agent.metric("everflame_agent_bpf_program_runs_total") - runs_before;
    print(name, "agent_cpu", 100.0 * cpu / seconds, "% of one core");
    print(name, "bpf_cpu", 100.0 * bpf_seconds / seconds, "% of one core");
    print(name, "agent_and_bpf_cpu", 100.0 * (cpu + bpf_seconds) / seconds, "% of one core");
    print(name, "bpf_run_time_per_sample", bpf.mean_ns(), "ns");
    print(name, "bpf_run_time_own_estimate", estimate * 1e9 / estimated_runs.max(1.0), "ns");
    print(name, "samples", samples, "");
    print(name, "lost_samples", agent.metric("everflame_agent_lost_samples_total"), "");
    print(name, "lost_process_records", agent.metric("everflame_agent_sideband_lost_total"), "");
    print(
        name,
        "bytes_on_the_wire_per_sample",
        agent.metric("everflame_agent_export_bytes_total") / samples,
        "B",
    );
    print(name, "peak_rss", status_mib(pid, "VmHWM"), "MiB");
    print(name, "bpf_maps", agent.metric("everflame_agent_bpf_map_bytes") / 1048576.0, "MiB");
    assert!(agent.process.terminate().success(), "{}", agent.process.log());
}

/// A fixed amount of work, with nobody watching and with an agent, in turns.
fn slowdown(threads: &str) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let work = || {
        let output =
            Command::new(workload("work")).args([MEGA_ITERATIONS, threads]).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        stdout.trim().strip_prefix("elapsed_ns ").unwrap().parse::<f64>().unwrap()
    };
    let beside_agent = |rate: &str| {
        let agent =
            Agent::start(&server.url(), &dir.path().join("spool"), &["--cpu-rate-hz", rate]);
        // Start-up is not what a profiler that is always on costs.
        std::thread::sleep(Duration::from_secs(3));
        let elapsed = work();
        drop(agent);
        elapsed
    };
    work();
    let (mut alone, mut at_19, mut at_97) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let base = work();
        alone.push(base);
        // Against the run just before: a shared machine drifts.
        at_19.push(beside_agent("19") / base);
        at_97.push(beside_agent("97") / base);
    }
    print("slowdown", "alone", median(&mut alone) / 1e6, "ms");
    print("slowdown", "alone_spread", 100.0 * spread(&mut alone), "% (interquartile)");
    for (name, ratios) in [("at_19hz", &mut at_19), ("at_97hz", &mut at_97)] {
        print("slowdown", name, 100.0 * (median(ratios) - 1.0), "%");
        print("slowdown", &format!("{name}_spread"), 100.0 * spread(ratios), "% (interquartile)");
    }
}

fn print(group: &str, name: &str, value: f64, unit: &str) {
    println!("{group}.{name} {value:.3} {unit}");
}

fn spread(values: &mut [f64]) -> f64 {
    let middle = median(values);
    (values[values.len() * 3 / 4] - values[values.len() / 4]) / middle
}
