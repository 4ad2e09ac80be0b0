//! What a call of an allocator costs while a window is open on its process: pairs of an allocation and
//! `free`, with and without, in turns. `free` is not probed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use everflame_tests::allocations::wait_for_probes;
use everflame_tests::cost::median;
use everflame_tests::program::{Running, everflame};
use everflame_tests::workload::workload;
use tempfile::TempDir;

use everflame_tests::bench::print;

const PAIRS: &str = "300000";

/// Each is a window of some seconds.
const MAX_ROUNDS: usize = 5;

const FUNCTIONS: [&str; 4] = ["malloc", "calloc", "aligned_alloc", "posix_memalign"];

/// With the default, and with a period that leaves hardly any sample.
const PERIODS: [&str; 2] = ["512KiB", "1GiB"];

pub(crate) fn run(rounds: usize) {
    let rounds = rounds.min(MAX_ROUNDS);
    eprintln!("{rounds} rounds of {PAIRS} pairs by each function, with and without a window ...");
    let mut closed = [(); FUNCTIONS.len()].map(|()| Vec::new());
    let mut open = [(); PERIODS.len()].map(|()| closed.clone());
    let mut pairs = Pairs::start();
    for _ in 0..rounds {
        pairs.measure(&mut closed);
        for (period, open) in PERIODS.iter().zip(&mut open) {
            let dir = TempDir::new().unwrap();
            let mut command = everflame();
            command.args(["record", "--kind", "alloc", "--mode", "window", "--duration", "10m"]);
            command.args(["--alloc-period", period, "--pid", &pairs.child.id().to_string(), "-o"]);
            let mut window = Running::start(command.arg(dir.path().join("alloc.pb.gz")));
            wait_for_probes(pairs.child.id());
            pairs.measure(open);
            window.terminate();
        }
    }
    for (at, function) in FUNCTIONS.iter().enumerate() {
        let without = median(&mut closed[at]);
        print("window", &format!("{function}_closed"), without, "ns a pair");
        for (period, open) in PERIODS.iter().zip(&mut open) {
            let more = median(&mut open[at]) - without;
            print("window", &format!("{function}_open_{period}"), more, "ns more a call");
        }
    }
}

/// `tests/workloads/pairs.c`, which measures itself.
struct Pairs {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Pairs {
    fn start() -> Self {
        let mut child = Command::new(workload("pairs"))
            .arg(PAIRS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut pairs = Self { child, stdin, stdout };
        assert_eq!(pairs.line(), "ready");
        pairs
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Adds the nanoseconds of a pair by each function.
    fn measure(&mut self, ns: &mut [Vec<f64>; FUNCTIONS.len()]) {
        for (function, ns) in FUNCTIONS.iter().zip(ns) {
            writeln!(self.stdin, "{function}").unwrap();
            let line = self.line();
            let field = line.split(' ').find_map(|word| word.strip_prefix("ns="));
            ns.push(
                field.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{line}")),
            );
        }
    }
}

impl Drop for Pairs {
    fn drop(&mut self) {
        // A line that is no function's name ends it.
        let _ = writeln!(self.stdin);
        let _ = self.child.wait();
    }
}
