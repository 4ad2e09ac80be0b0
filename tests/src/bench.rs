//! What the benches of this package share: groups of figures, and how a figure is printed.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

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
