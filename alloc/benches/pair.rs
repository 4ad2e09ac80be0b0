//! What the library costs: nanoseconds for a `malloc` and its `free`, without it, with it loaded and
//! nobody listening, and with it sampling at the default period.
//!
//! The three take turns, so that what else the machine does falls on all of them; printed are medians.

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
const PAIRS: &str = "20000000";
const SIZES: [&str; 3] = ["16", "64", "1000"];

fn main() {
    let pair = program::compiled("cc", "pair");
    for size in SIZES {
        let mut rounds: [Vec<f64>; 3] = Default::default();
        for _ in 0..ROUNDS {
            rounds[0].push(ns(Command::new(&pair).args(["0", PAIRS, size])));
            rounds[1].push(ns(with(&pair).args(["0", PAIRS, size])));
            rounds[2].push(ns(with(&pair).args(["1", PAIRS, size])));
        }
        let [without, idle, sampling] = rounds.map(median);
        println!(
            "{size} bytes: without {without:.2} ns, idle {idle:.2} ns ({:.2}x), sampling {sampling:.2} ns ({:.2}x)",
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
