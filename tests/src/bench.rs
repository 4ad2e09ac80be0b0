//! What the benches of this package share: groups of figures, and how a figure is printed.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use crate::cost::{median, quantile};

/// Runs the groups that the command line names, or all if it names none.
///
/// # Panics
/// If there is none of a name that was given.
pub fn run_groups<const N: usize>(groups: [(&str, impl Fn()); N]) {
    // Cargo adds `--bench`.
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for name in &wanted {
        let names = groups.each_ref().map(|(name, _)| *name);
        assert!(names.contains(&name.as_str()), "no group `{name}`; there are {names:?}");
    }
    for (name, run) in groups {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run();
        }
    }
}

/// How often everything is measured: `EVERFLAME_BENCH_ROUNDS`, or else so many times.
///
/// # Panics
/// If that is not a number.
pub fn rounds_or(default: usize) -> usize {
    std::env::var("EVERFLAME_BENCH_ROUNDS")
        .map_or(default, |rounds| rounds.parse().expect("a number of rounds"))
}

/// Prints one figure.
pub fn print(group: &str, name: &str, value: f64, unit: &str) {
    println!("{group}.{name} {value:.3} {unit}");
}

/// By how much one is more than the other, in per cent, compared within each round, as a shared machine drifts.
pub fn print_more(group: &str, name: &str, pairs: impl Iterator<Item = (f64, f64)>, unit: &str) {
    print_percent(group, name, pairs.map(|(of, than)| 100.0 * (of / than - 1.0)), unit);
}

/// The median of what each round says, and how far apart the quartiles are.
pub fn print_percent(group: &str, name: &str, rounds: impl Iterator<Item = f64>, unit: &str) {
    let mut percent: Vec<f64> = rounds.collect();
    print(group, name, median(&mut percent), unit);
    let spread = quantile(&mut percent, 0.75) - quantile(&mut percent, 0.25);
    print(group, &format!("{name}_spread"), spread, "% (interquartile)");
}
