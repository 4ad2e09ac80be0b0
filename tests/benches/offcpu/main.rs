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
    let rounds = std::env::var("EVERFLAME_BENCH_ROUNDS")
        .map_or(DEFAULT_ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    let groups: [Group; 5] = [
        ("pipe_pinned", overhead::run_pipe_pinned),
        ("pipe", overhead::run_pipe),
        ("messaging", overhead::run_messaging),
        ("switch", switch::run),
        ("totals", totals::run),
    ];
    // Cargo adds `--bench`.
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, run) in groups {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run(rounds);
        }
    }
}

/// One figure.
fn print(group: &str, name: &str, value: f64, unit: &str) {
    println!("{group}.{name} {value:.3} {unit}");
}
