//! What following requests to disks and TCP connections costs programs that make as many as they can.
//!
//! Prints lines of `name value unit`, one group after the other; arguments select groups by
//! name. `EVERFLAME_BENCH_ROUNDS` is how often everything is measured. Run it with
//! `cargo xtask bench io-net`.
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench prints its figures and fails by panicking"
)]

#[path = "../beside/mod.rs"]
mod beside;
mod fio;
mod latency;
mod redis;

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
    let groups: [Group; 3] = [("fio", fio::run), ("latency", latency::run), ("redis", redis::run)];
    run_groups(groups.map(|(name, run)| (name, move || run(rounds))));
}
