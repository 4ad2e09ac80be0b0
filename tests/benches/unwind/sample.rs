//! BPF run time of a sample, by the depth of the stack and the mode that was interrupted; beside
//! other profilers that unwind without frame pointers, where they are installed.
//!
//! The kernel's statistics give sums. Looked at more often than samples come, they give single
//! runs, and so percentiles.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use everflame_tests::cost::{BpfPrograms, BpfStats, cpu_seconds, median, quantile, status_mib};
use everflame_tests::program::{Agent, Running, Server};
use everflame_tests::workload::workload;
use tempfile::TempDir;

use everflame_tests::bench::print;

const SPAN: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;

/// At the high rate, of which all stacks get one in turn: the machine's good and bad minutes are shared out.
const HIGH_RATE_SPAN: Duration = Duration::from_secs(5);
const HIGH_RATE_ROUNDS: usize = 7;

/// Stacks whose samples are measured.
const STACKS: [(&str, &str); 4] =
    [("22", "user"), ("200", "user"), ("22", "kernel"), ("200", "kernel")];

/// What people use. Caches are cold again at each sample.
const RATE_HZ: &str = "97";

/// Shows more of the code alone.
const HIGH_RATE_HZ: &str = "997";

/// A profiler that has been started.
struct Profiler {
    process: Running,
    _server: Option<Server>,
    _dir: TempDir,
}

pub(crate) fn run() {
    let lightswitch = find("lightswitch");
    if lightswitch.is_none() {
        eprintln!(
            "lightswitch is not installed (cargo install lightswitch), nothing to compare with"
        );
    }
    eprintln!("{ROUNDS} rounds of {SPAN:?} for each stack and profiler ...");
    for (depth, mode) in STACKS {
        let mut ours = Figures::default();
        let mut theirs = Figures::default();
        for _ in 0..ROUNDS {
            // In turns: a shared machine drifts.
            ours.add(depth, mode, start_agent(RATE_HZ), SPAN);
            if let Some(lightswitch) = &lightswitch {
                theirs.add(depth, mode, start_lightswitch(lightswitch, RATE_HZ), SPAN);
            }
        }
        ours.print(&format!("sample_{RATE_HZ}hz_{depth}_{mode}"));
        if lightswitch.is_some() {
            theirs.print(&format!("lightswitch_{RATE_HZ}hz_{depth}_{mode}"));
        }
    }
    perf_record_dwarf();
}

/// The same at a rate that leaves more in the caches.
pub(crate) fn run_at_high_rate() {
    eprintln!(
        "{HIGH_RATE_ROUNDS} rounds of {HIGH_RATE_SPAN:?} for each stack at {HIGH_RATE_HZ} Hz ..."
    );
    let mut figures = STACKS.map(|_| Figures::default());
    for _ in 0..HIGH_RATE_ROUNDS {
        for ((depth, mode), figures) in STACKS.into_iter().zip(&mut figures) {
            figures.add(depth, mode, start_agent(HIGH_RATE_HZ), HIGH_RATE_SPAN);
        }
    }
    for ((depth, mode), figures) in STACKS.into_iter().zip(&mut figures) {
        figures.print(&format!("sample_{HIGH_RATE_HZ}hz_{depth}_{mode}"));
    }
}

#[derive(Default)]
struct Figures {
    runs_ns: Vec<f64>,
    means_ns: Vec<f64>,
    cpu_percent: Vec<f64>,
    rss_mib: Vec<f64>,
}

impl Figures {
    /// Measures a profiler on CPUs that are busy with one stack.
    fn add(&mut self, depth: &str, mode: &str, profiler: Profiler, span: Duration) {
        let cpus = std::thread::available_parallelism().unwrap().get();
        let _load: Vec<Running> = (0..cpus)
            .map(|_| {
                let mut deep = Command::new(workload("deep"));
                Running::start(deep.args([depth, "600", mode]).stdout(Stdio::null()))
            })
            .collect();
        std::thread::sleep(WARM_UP);
        let pid = profiler.process.pid();
        let programs = BpfPrograms::samplers_of(pid);
        let stats = BpfStats::on();
        let (before, cpu_before, begin) = (programs.run_time(), cpu_seconds(pid), Instant::now());
        // Nobody watches: whoever looks at single runs is sampled, too, in files of /proc.
        std::thread::sleep(span);
        let run_time = programs.run_time().since(before);
        let cpu = (cpu_seconds(pid) - cpu_before) / begin.elapsed().as_secs_f64();
        let single = programs.watch(span / 2);
        drop(stats);
        self.runs_ns.extend(single.into_iter().map(|ns| ns as f64));
        self.means_ns.push(run_time.mean_ns());
        self.cpu_percent.push(100.0 * cpu);
        self.rss_mib.push(status_mib(pid, "VmHWM"));
    }

    fn print(&mut self, name: &str) {
        print(name, "bpf_run_time_mean", median(&mut self.means_ns) / 1e3, "us");
        for (quartile, share) in [("lower", 0.25), ("upper", 0.75)] {
            let mean_ns = quantile(&mut self.means_ns, share);
            print(name, &format!("bpf_run_time_mean_{quartile}_quartile"), mean_ns / 1e3, "us");
        }
        print(name, "bpf_run_time_p50", median(&mut self.runs_ns) / 1e3, "us");
        print(name, "bpf_run_time_p99", quantile(&mut self.runs_ns, 0.99) / 1e3, "us");
        print(name, "single_runs", self.runs_ns.len() as f64, "");
        print(name, "cpu", median(&mut self.cpu_percent), "% of one core");
        print(name, "peak_rss", median(&mut self.rss_mib), "MiB");
    }
}

fn start_agent(rate_hz: &str) -> Profiler {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let arguments = ["--cpu-rate-hz", rate_hz];
    let agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    Profiler { process: agent.process, _server: Some(server), _dir: dir }
}

/// The nearest peer: tables of rows, walked in BPF. It wants to see tracefs, which is mounted for
/// it alone.
fn start_lightswitch(program: &Path, rate_hz: &str) -> Profiler {
    let dir = TempDir::new().unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .arg("mount -t debugfs debugfs /sys/kernel/debug; exec \"$0\" \"$@\"")
        .arg(program)
        .args(["--sample-freq", rate_hz, "--profile-format", "none", "--sender", "none"])
        .current_dir(dir.path())
        .stdout(Stdio::null());
    let process = Running::start(&mut command);
    std::thread::sleep(Duration::from_secs(5));
    Profiler { process, _server: None, _dir: dir }
}

/// What perf does instead: it copies stacks to user space, to be unwound later.
fn perf_record_dwarf() {
    if find("perf").is_none() {
        eprintln!("perf is not installed, nothing to compare with");
        return;
    }
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("perf.data");
    let mut deep = Command::new(workload("deep"));
    let _load = Running::start(deep.args(["200", "600"]).stdout(Stdio::null()));
    let mut command = Command::new("perf");
    command.args(["record", "-a", "--call-graph", "dwarf,65528", "-e", "cpu-clock", "-F", "97"]);
    let mut perf = Running::start(command.arg("-o").arg(&data).stdout(Stdio::null()));
    std::thread::sleep(Duration::from_secs(2));
    let (cpu_before, begin) = (cpu_seconds(perf.pid()), Instant::now());
    std::thread::sleep(SPAN / 2);
    let cpu = (cpu_seconds(perf.pid()) - cpu_before) / begin.elapsed().as_secs_f64();
    perf.terminate();
    let bytes = std::fs::metadata(&data).map_or(0, |data| data.len());
    let seconds = begin.elapsed().as_secs_f64() + 2.0;
    print("perf_record_dwarf_200_user", "cpu", 100.0 * cpu, "% of one core, without unwinding");
    print("perf_record_dwarf_200_user", "written", bytes as f64 / seconds / 1048576.0, "MiB/s");
}

/// A program on `PATH`, or where cargo installs programs.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let cargo = std::env::home_dir().map(|home| home.join(".cargo/bin"));
    std::env::split_paths(&path)
        .chain(cargo)
        .map(|dir| dir.join(program))
        .find(|program| program.is_file())
}
