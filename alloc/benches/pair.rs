//! What the library costs: nanoseconds for a `malloc` and its `free`, beside 64 MiB of other objects,
//! without it, with it and nobody listening, and with it sampling at the default period.
//!
//! The three take turns, so that what else the machine does falls on all of them; printed are medians.
//! What a profiler's probe takes is not in it: that is about a microsecond for each event, on average one for
//! its allocation and one for its end in each 512 KiB.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a bench prints, and ends at the first thing that does not work"
)]

#[path = "../tests/loaded/library.rs"]
mod library;
#[path = "../tests/loaded/program.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod program;

use std::path::PathBuf;
use std::process::Command;

const ROUNDS: usize = 15;
const PAIRS: &str = "10000000";

/// What is measured, and the size that `pair.c` is told.
const CASES: [(&str, &str); 3] =
    [("64 bytes", "64"), ("1000 bytes", "1000"), ("16 to 1040 bytes in any order", "0")];

fn main() {
    let pair = program::compiled("cc", "pair");
    for (what, size) in CASES {
        let mut rounds: [Vec<f64>; 3] = Default::default();
        for _ in 0..ROUNDS {
            rounds[0].push(ns(Command::new(&pair).args(["0", PAIRS, size])));
            rounds[1].push(ns(with(&pair).args(["0", PAIRS, size])));
            rounds[2].push(ns(with(&pair).args(["1", PAIRS, size])));
        }
        let [without, idle, sampling] = rounds.map(median);
        println!(
            "{what}: without {without:.2} ns, idle {idle:.2} ns ({:.2}x), sampling {sampling:.2} ns ({:.2}x)",
            idle / without,
            sampling / without,
        );
    }
}

fn with(program: &PathBuf) -> Command {
    program::with_library(program, &[])
}

fn ns(command: &mut Command) -> f64 {
    program::output(command).trim().parse().expect("not a number")
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
