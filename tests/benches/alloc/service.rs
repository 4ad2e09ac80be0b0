//! redis under `redis-benchmark`: without the library, with it and nobody listening, with it sampling at its
//! default period, each sample and its end a trap that the kernel counts, and with an agent that takes the
//! stacks.
//!
//! CPU time is what the server itself takes; how many requests it answers in a second depends on where the
//! scheduler puts it and its client as well. Two servers run side by side in each round, one with the library,
//! so that sampling and the agent are switched on and off in one process: from one start of redis to the next
//! it is some per cent faster or slower, by where its memory happens to lie.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use everflame_tests::bench::{print, print_more};
use everflame_tests::cost::{BpfPrograms, BpfStats, cpu_seconds, median};
use everflame_tests::redis::Redis;
use everflame_tests::workload::workload;
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
use tempfile::TempDir;

use crate::beside::agent::KindAgent;
use crate::beside::hooks::Followed;

/// Requests of a run: a second or two.
const REQUESTS: &str = "400000";

#[derive(Clone, Copy)]
enum Library {
    Without,
    Idle,
    Sampling,
    Agent,
}

/// What each case takes in a round.
type Round = [Run; CASES.len()];

/// How often each case runs in a round.
const TURNS: usize = 3;

const CASES: [Library; 4] = [Library::Without, Library::Idle, Library::Sampling, Library::Agent];

/// Live heaps alone.
pub(crate) const LIVE: Followed = Followed { kinds: "alloc", hooks: &[] };
pub(crate) const LIVE_ONLY: &[&str] = &["--alloc-modes", "live"];

/// They make the server's tables grow.
const FIRST_OBJECTS: u64 = 20_000;

/// What a run took.
#[derive(Clone, Copy, Default)]
struct Run {
    cpu_us_per_request: f64,
    us_per_request: f64,
    traps_per_second: f64,
}

pub(crate) fn run(rounds: usize) {
    let Some(library) = library() else {
        eprintln!("the library is not built: `cargo xtask bench alloc` does that");
        return;
    };
    eprintln!("{rounds} rounds of redis without the library, with it, and with it sampling ...");
    let runs: Vec<Round> = (0..rounds).map(|round| measure_round(round, &library)).collect();
    let values: [fn(&Run) -> f64; 2] = [|run| run.cpu_us_per_request, |run| run.us_per_request];
    for (name, value) in ["cpu", "time"].into_iter().zip(values) {
        let mut without: Vec<f64> = runs.iter().map(|of_round| value(&of_round[0])).collect();
        print("redis", &format!("{name}_without"), median(&mut without), "us per request");
        let (without, idle, sampling, agent) = (0, 1, 2, 3);
        for (case, of, than) in [
            ("idle_against_without", idle, without),
            ("sampling_against_idle", sampling, idle),
            ("agent_against_idle", agent, idle),
        ] {
            let pairs = runs.iter().map(|of_round| (value(&of_round[of]), value(&of_round[than])));
            let unit = "% (target: at most 1 with what it is when idle)";
            print_more("redis", &format!("{name}_{case}"), pairs, unit);
        }
    }
    let mut traps: Vec<f64> = runs.iter().map(|of_round| of_round[2].traps_per_second).collect();
    print("redis", "sampling_traps", median(&mut traps), "per second");
    print("redis", "agent_bpf_time", bpf_percent(&library), "% of the time that redis runs");
}

/// What the agent's programs take, by the kernel's statistics. The traps that they run in come on top.
fn bpf_percent(library: &Path) -> f64 {
    let dir = TempDir::new().unwrap();
    let redis = start(Library::Agent, library, dir.path());
    let agent = KindAgent::start(LIVE, LIVE_ONLY);
    redis.fill(FIRST_OBJECTS);
    let programs = BpfPrograms::of(agent.process.pid());
    let _stats = BpfStats::on();
    let (before, begin) = (programs.run_time(), Instant::now());
    requests_per_second(&redis);
    let run_time = programs.run_time().since(before);
    100.0 * run_time.ns as f64 / begin.elapsed().as_nanos() as f64
}

fn start(case: Library, library: &Path, dir: &Path) -> Redis {
    Redis::start(dir, |command| {
        if !matches!(case, Library::Without) {
            command.env("LD_PRELOAD", library).env_remove("EVERFLAME_ALLOC_PERIOD");
        }
    })
}

/// Runs the load.
fn requests_per_second(redis: &Redis) -> f64 {
    let output = redis
        .benchmark()
        .args([
            "-t", "set", "-d", "512", "-r", "100000", "-c", "20", "-P", "4", "--csv", "-n",
            REQUESTS,
        ])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let row = stdout.lines().find_map(|line| line.strip_prefix("\"SET\",\""));
    let per_second = row.and_then(|row| row.split('"').next()?.parse::<f64>().ok());
    per_second.unwrap_or_else(|| panic!("redis-benchmark says {stdout}"))
}

/// Runs each case some times, in turns; of each the median.
fn measure_round(round: usize, library: &Path) -> Round {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let without = start(Library::Without, library, dirs[0].path());
    let with = start(Library::Idle, library, dirs[1].path());
    without.fill(FIRST_OBJECTS);
    with.fill(FIRST_OBJECTS);
    let mut runs = vec![Vec::new(); CASES.len()];
    for turn in 0..CASES.len() * TURNS {
        let at = (round + turn) % CASES.len();
        let redis = if matches!(CASES[at], Library::Without) { &without } else { &with };
        runs[at].push(measure(CASES[at], redis, library));
    }
    let of_case = |at: usize| {
        let median_of =
            |value: fn(&Run) -> f64| median(&mut runs[at].iter().map(value).collect::<Vec<_>>());
        Run {
            cpu_us_per_request: median_of(|run| run.cpu_us_per_request),
            us_per_request: median_of(|run| run.us_per_request),
            traps_per_second: median_of(|run| run.traps_per_second),
        }
    };
    std::array::from_fn(of_case)
}

fn measure(case: Library, redis: &Redis, library: &Path) -> Run {
    let probes = matches!(case, Library::Sampling).then(|| {
        ["everflame_alloc_sampled", "everflame_free_sampled"].map(|name| Probe::at(library, name))
    });
    let _agent = matches!(case, Library::Agent).then(|| KindAgent::start(LIVE, LIVE_ONLY));
    let before = cpu_seconds(redis.process.pid());
    let per_second = requests_per_second(redis);
    let cpu = cpu_seconds(redis.process.pid()) - before;
    let requests: f64 = REQUESTS.parse().unwrap();
    let probes = probes.into_iter().flatten();
    let traps: f64 = probes.map(Probe::end).sum();
    Run {
        traps_per_second: traps * per_second / requests,
        cpu_us_per_request: 1e6 * cpu / requests,
        us_per_request: 1e6 / per_second,
    }
}

/// As `cargo xtask bench alloc` builds it.
pub(crate) fn library() -> Option<PathBuf> {
    let bench = std::env::current_exe().ok()?;
    let target = bench.ancestors().nth(3)?;
    Some(target.join("preload/libeverflame_alloc.so")).filter(|path| path.exists())
}

/// The kernel counts calls of a function of the library until this ends.
struct Probe {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    fn at(library: &Path, function: &str) -> Self {
        let offset = |name| format!("{:#x}", file_offset(library, name));
        let mut command = Command::new(workload("count_calls"));
        command.arg(library).args([offset(function), offset("everflame_alloc_semaphore")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut probe = Self { child, answers };
        assert_eq!(probe.answer(), "ready");
        probe
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// How many there were.
    fn end(mut self) -> f64 {
        drop(self.child.stdin.take());
        let calls = self.answer().parse().unwrap();
        self.child.wait().unwrap();
        calls
    }
}

/// Where what a library exports is in its file.
fn file_offset(library: &Path, name: &str) -> u64 {
    let bytes = std::fs::read(library).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let symbol = file.dynamic_symbols().find(|symbol| symbol.name() == Ok(name));
    let address = symbol.unwrap_or_else(|| panic!("no {name}")).address();
    let of_segment = file.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let within = address.checked_sub(segment.address())?;
        (within < size).then_some(offset + within)
    });
    of_segment.unwrap_or_else(|| panic!("{name} is not in the file"))
}
