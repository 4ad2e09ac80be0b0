//! What following waits costs: what programs that switch all the time lose, and the time that
//! the BPF programs take for a switch; and whether the parts of a thread's time add up.
//!
//! Prints lines of `name value unit`, one group after the other; arguments select groups by
//! name. `EVERFLAME_BENCH_ROUNDS` is how often everything is measured. Run it with
//! `cargo xtask bench offcpu`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench prints its figures and fails by panicking"
)]

#[path = "../beside/mod.rs"]
mod beside;
mod followed;
mod load;
mod overhead;
mod switch;
mod totals;

use everflame_tests::bench::{rounds_or, run_groups};

/// A name, and what measures in so many rounds.
type Group = (&'static str, fn(usize));

/// Odd, so that a median is a value that was measured.
const DEFAULT_ROUNDS: usize = 15;

fn main() {
    if !everflame_tests::bpf_is_permitted() {
        return;
    }
    if !load::is_installed() {
        eprintln!("perf or taskset is not installed, and `perf bench` is what is measured");
        return;
    }
    let rounds = rounds_or(DEFAULT_ROUNDS);
    let groups: [Group; 5] = [
        ("pipe_pinned", overhead::run_pipe_pinned),
        ("pipe", overhead::run_pipe),
        ("messaging", overhead::run_messaging),
        ("switch", switch::run),
        ("totals", totals::run),
    ];
    run_groups(groups.map(|(name, run)| (name, move || run(rounds))));
}
