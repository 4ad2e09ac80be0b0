//! Memory with 100 different programs running.
//!
//! Some are what people run: interpreters, shells, databases, each waiting for input. The others
//! are programs of /usr/bin, held just before their `main`, when they and their libraries lie
//! in memory, by a preloaded library (tests/workloads/hold.c). All of them compute now and then.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use everflame_tests::cost::{cpu_seconds, status_mib};
use everflame_tests::program::{Agent, Running, Server};
use everflame_tests::workload::{java_workload, source, workload};
use tempfile::TempDir;

use everflame_tests::bench::print;

const PROGRAMS: usize = 100;
const SPAN: Duration = Duration::from_secs(60);

/// Programs that wait for input, with what makes them do so.
const WAITING: [(&str, &[&str]); 24] = [
    ("bash", &[]),
    ("bc", &[]),
    ("cat", &[]),
    ("dash", &[]),
    ("dc", &[]),
    ("ed", &[]),
    ("gawk", &["{}"]),
    ("gdb", &["-q", "-nx"]),
    ("grep", &["x"]),
    ("gzip", &["-c"]),
    ("mawk", &["{}"]),
    ("node", &["-e", "process.stdin.resume()"]),
    ("openssl", &["dgst"]),
    ("perl", &["-e", "<STDIN>"]),
    ("python3", &["-c", "import json, re, ssl, sqlite3, sys; sys.stdin.read()"]),
    ("sed", &[""]),
    ("sleep", &["3600"]),
    ("sort", &[]),
    ("sqlite3", &["-interactive"]),
    ("ssh-agent", &["-D"]),
    ("tail", &["-f", "/dev/null"]),
    ("tr", &["a", "b"]),
    ("wc", &[]),
    ("xz", &["-dc"]),
];

pub(crate) fn run() {
    eprintln!("memory with {PROGRAMS} different programs, {SPAN:?} ...");
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let agent = Agent::start(&server.url(), &dir.path().join("spool"), &["--cpu-rate-hz", "19"]);
    let pid = agent.process.pid();
    std::thread::sleep(Duration::from_secs(15));
    report(&agent, "host_alone");

    let start = |program: &Path, arguments: &[&str]| {
        Running::start(Command::new(program).args(arguments).stdout(Stdio::null()))
    };
    let text = |path: PathBuf| path.display().to_string();
    let busy = [
        start(&workload("deep"), &["200", "600"]),
        start(Path::new("/usr/bin/python3"), &[&text(source("busy.py")), "600"]),
        start(Path::new("node"), &[&text(source("busy.js")), "600"]),
        start(Path::new("java"), &["-cp", &text(java_workload("Busy")), "Busy", "600"]),
    ];
    let fleet = Fleet::start(PROGRAMS - busy.len());
    println!("fleet.programs {}", fleet.0.len() + busy.len());
    std::thread::sleep(SPAN / 2);
    let cpu_before = cpu_seconds(pid);
    std::thread::sleep(SPAN / 2);
    let cpu = (cpu_seconds(pid) - cpu_before) / (SPAN / 2).as_secs_f64();
    report(&agent, "fleet");
    print("fleet", "agent_cpu", 100.0 * cpu, "% of one core");
    for line in agent.metrics().lines().filter(|line| line.contains("unwind")) {
        if !line.starts_with('#') {
            println!("  {line}");
        }
    }
}

fn report(agent: &Agent, name: &str) {
    let pid = agent.process.pid();
    print(name, "bpf_memory", agent.metric("everflame_agent_bpf_map_bytes") / 1048576.0, "MiB");
    print(name, "rss", status_mib(pid, "VmRSS"), "MiB");
    print(name, "peak_rss", status_mib(pid, "VmHWM"), "MiB");
}

/// Processes that are killed when this goes out of scope.
struct Fleet(Vec<Child>);

impl Fleet {
    /// Starts that many, each another program.
    fn start(count: usize) -> Self {
        let mut fleet = Self(Vec::new());
        for (program, arguments) in WAITING {
            fleet.add(Command::new(program).args(arguments));
        }
        std::thread::sleep(Duration::from_secs(2));
        fleet.0.retain_mut(|child| child.try_wait().is_ok_and(|ended| ended.is_none()));

        let hold = workload("hold");
        let names: Vec<&str> = WAITING.iter().map(|(name, _)| *name).collect();
        let others = programs("/usr/bin", &names);
        // Evenly over the alphabet, so that neither one project nor one language prevails.
        let stride = (others.len() / (count - fleet.0.len())).max(1);
        let order = (0..stride).flat_map(|from| others.iter().skip(from).step_by(stride));
        for program in order {
            if fleet.0.len() == count {
                break;
            }
            fleet.add(Command::new(program).env("LD_PRELOAD", &hold));
            std::thread::sleep(Duration::from_millis(50));
            fleet.0.retain_mut(|child| child.try_wait().is_ok_and(|ended| ended.is_none()));
        }
        fleet
    }

    fn add(&mut self, command: &mut Command) {
        // What waits for input is never given any: the pipe stays open.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.0.extend(command.spawn());
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The executables of a directory, without links, scripts and programs with more rights than ours.
fn programs(dir: &str, except: &[&str]) -> Vec<PathBuf> {
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_file = path.symlink_metadata().is_ok_and(|file| file.is_file());
        is_file && !except.contains(&name) && is_elf(path)
    };
    let entries = std::fs::read_dir(dir).unwrap().filter_map(Result::ok);
    let mut programs: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_wanted).collect();
    programs.sort();
    programs
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *b"\x7fELF"
}
