//! What a call of an allocator costs while a window is open on its process: pairs of an allocation and
//! `free`, with and without, in turns. `free` is not probed.

use everflame_tests::allocations::wait_for_probes;
use everflame_tests::cost::median;
use everflame_tests::program::{Running, everflame};
use tempfile::TempDir;

use everflame_tests::bench::print;

use crate::pairs::Pairs;

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
    let mut pairs = Pairs::start(PAIRS, &[]);
    for _ in 0..rounds {
        measure(&mut pairs, &mut closed);
        for (period, open) in PERIODS.iter().zip(&mut open) {
            let dir = TempDir::new().unwrap();
            let mut command = everflame();
            command.args(["record", "--kind", "alloc", "--mode", "window", "--duration", "10m"]);
            command.args(["--alloc-period", period, "--pid", &pairs.pid().to_string(), "-o"]);
            let mut window = Running::start(command.arg(dir.path().join("alloc.pb.gz")));
            wait_for_probes(pairs.pid());
            measure(&mut pairs, open);
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

/// Adds the nanoseconds of a pair by each function.
fn measure(pairs: &mut Pairs, ns: &mut [Vec<f64>; FUNCTIONS.len()]) {
    for (function, ns) in FUNCTIONS.iter().zip(ns) {
        ns.push(pairs.ns(function));
    }
}
