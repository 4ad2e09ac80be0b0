//! What it costs to see where memory comes from: a load that forks and faults all the time beside an
//! agent that samples growth, redis with the library that samples its allocations, and calls of an
//! allocator with an open window.
//!
//! Prints lines of `name value unit`, one group after the other; arguments select groups by
//! name. `EVERFLAME_BENCH_ROUNDS` is how often everything is measured. Run it with
//! `cargo xtask bench alloc`, which measures `malloc` with the library as well.
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench prints its figures and fails by panicking"
)]

#[path = "../beside/mod.rs"]
mod beside;
mod faults;
mod forks;
mod object;
mod pairs;
mod program;
mod service;
mod window;

use everflame_tests::bench::{rounds_or, run_groups};

/// A name, and what measures in so many rounds.
type Group = (&'static str, fn(usize));

/// Odd, so that a median is a value that was measured.
const DEFAULT_ROUNDS: usize = 15;

fn main() {
    if !everflame_tests::bpf_is_permitted() {
        return;
    }
    let rounds = rounds_or(DEFAULT_ROUNDS);
    let groups: [Group; 5] = [
        ("faults", faults::run),
        ("program", program::run),
        ("object", object::run),
        ("redis", service::run),
        ("window", window::run),
    ];
    run_groups(groups.map(|(name, run)| (name, move || run(rounds))));
}
