//! What complete stacks cost: time in the kernel, tables, memory; and how complete they are.
//!
//! Prints lines of `name value unit`, one group after the other; arguments select groups by
//! name. Run it with `cargo xtask bench unwind`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a bench prints its figures and fails by panicking"
)]

mod busy;
mod compile;
mod fleet;
mod load;
mod sample;

use everflame_tests::bench::run_groups;

fn main() {
    if !everflame_tests::bpf_is_permitted() {
        return;
    }
    let groups: [(&str, fn()); 6] = [
        ("compile", compile::run),
        ("sample", sample::run),
        ("sample_high_rate", sample::run_at_high_rate),
        ("load", load::run),
        ("fleet", fleet::run),
        ("busy", busy::run),
    ];
    run_groups(groups);
}
