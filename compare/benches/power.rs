//! What comparisons of two versions find, and how often they find what is not there: figures of docs/diff.md.
//!
//! Fleets are simulated (tests/simulated). Prints lines of `name value unit`. Run it with
//! `cargo xtask bench compare`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench prints its figures and fails by panicking"
)]

#[path = "../tests/simulated/mod.rs"]
mod simulated;

use everflame_compare::Verdict;
use simulated::{CHOSEN, Change, Comparison, Fleet, alarms, chosen};
use statrs::distribution::{ContinuousCDF, Normal};

const COMPARISONS: usize = 1_000;

/// For the search of what is found in 80 %.
const COMPARISONS_OF_SEARCH: usize = 60;

fn main() {
    false_alarms();
    power();
    shifts();
    smallest_change();
}

/// Of equal versions: ours, and a test that takes each sample for a replicate.
fn false_alarms() {
    eprintln!("{COMPARISONS} comparisons of equal versions for each of 18 fleets ...");
    for same_hosts in [false, true] {
        for hosts in [5, 10, 20] {
            for variation in [0.05, 0.1, 0.2] {
                let fleet = Fleet { hosts, variation, same_hosts, ..Fleet::default() };
                let mut rng = fastrand::Rng::with_seed(1);
                let (mut families, mut functions, mut of_pooled, mut pooled_families) =
                    (0, 0, 0.0, 0);
                for _ in 0..COMPARISONS {
                    let comparison = fleet.compare(Change::Nothing, &mut rng);
                    families += usize::from(alarms(&comparison.report));
                    let alarming =
                        comparison.report.functions.iter().filter(|it| it.verdict().is_alarm());
                    functions += alarming.count();
                    let p = pooled_binomial(&comparison);
                    let rejected = p.iter().filter(|p| **p <= 0.01).count();
                    of_pooled += rejected as f64 / p.len() as f64;
                    pooled_families += usize::from(rejected > 0);
                }
                let cell = format!(
                    "{}{hosts}_hosts_{}_percent",
                    if same_hosts { "same_" } else { "" },
                    (variation * 100.0) as u32
                );
                println!(
                    "compare.{cell}_false_alarms {families} of {COMPARISONS} (target: at most 67)"
                );
                println!("compare.{cell}_false_functions {functions} in {COMPARISONS} comparisons");
                println!(
                    "compare.{cell}_pooled_binomial {:.2} % of functions at 1 %, in {pooled_families} of {COMPARISONS} any",
                    100.0 * of_pooled / COMPARISONS as f64
                );
            }
        }
    }
}

/// The p-values of a z-test of proportions on pooled samples, for functions with as many samples as ours need.
fn pooled_binomial(comparison: &Comparison) -> Vec<f64> {
    let sums = |side: &Vec<Vec<f64>>| -> Vec<f64> {
        let mut sums = vec![0.0; side[0].len()];
        for host in side {
            for (sum, samples) in sums.iter_mut().zip(host) {
                *sum += samples;
            }
        }
        sums
    };
    let [base, compare] = [sums(&comparison.counts[0]), sums(&comparison.counts[1])];
    let (base_all, compare_all): (f64, f64) = (base.iter().sum(), compare.iter().sum());
    let normal = Normal::standard();
    let tested = base.iter().zip(&compare).filter(|(base, compare)| {
        *base + *compare >= 30.0 && (*base + *compare) / (base_all + compare_all) >= 0.0005
    });
    tested
        .map(|(base, compare)| {
            let share = (base + compare) / (base_all + compare_all);
            let deviation = (share * (1.0 - share) * (1.0 / base_all + 1.0 / compare_all)).sqrt();
            let z = (compare / compare_all - base / base_all) / deviation;
            2.0 * normal.sf(z.abs())
        })
        .collect()
}

fn found(fleet: Fleet, change: Change, comparisons: usize, seed: u64) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed);
    let is_found = |_: &usize| {
        let report = fleet.compare(change, &mut rng).report;
        let chosen = report.functions.iter().find(|it| it.name == chosen());
        chosen.is_some_and(|it| it.own.verdict == Verdict::Regressed)
    };
    (0..comparisons).filter(is_found).count()
}

fn power() {
    eprintln!("{COMPARISONS} comparisons with changes that are known, four times ...");
    assert_eq!(CHOSEN, 1);
    let print = |name: &str, fleet: Fleet, factor: f64, target: &str| {
        let found = found(fleet, Change::Factor(factor), COMPARISONS, 2);
        println!("compare.{name} {:.1} %{target}", 100.0 * found as f64 / COMPARISONS as f64);
    };
    let fleet = Fleet::default();
    let same = Fleet { same_hosts: true, ..fleet };
    print("found_20_percent_of_1", fleet, 1.2, " (target: at least 80)");
    print("found_20_percent_of_1_same_hosts", same, 1.2, "");
    print("found_10_percent_of_5", Fleet { share: 0.05, ..fleet }, 1.1, "");
    print(
        "found_10_percent_of_5_same_hosts",
        Fleet { share: 0.05, ..same },
        1.1,
        " (target: at least 90)",
    );
}

fn shifts() {
    eprintln!("{COMPARISONS} comparisons with a function that is split, six times ...");
    for (share, first) in
        [(0.002, 0.5), (0.01, 0.5), (0.01, 0.8), (0.05, 0.5), (0.05, 0.7), (0.2, 0.6)]
    {
        let fleet = Fleet { share, ..Fleet::default() };
        let mut rng = fastrand::Rng::with_seed(3);
        let quiet = |_: &usize| !alarms(&fleet.compare(Change::Split(first), &mut rng).report);
        let quiet = (0..COMPARISONS).filter(quiet).count();
        println!(
            "compare.split_{share}_at_{first} {:.1} % without alarm (target: at least 95)",
            100.0 * quiet as f64 / COMPARISONS as f64
        );
    }
}

/// The smallest change that is found in four of five comparisons, of functions of 1 % and 5 %.
fn smallest_change() {
    eprintln!("the smallest change that is found in 80 % ...");
    for same_hosts in [true, false] {
        for share in [0.01, 0.05] {
            for hosts in [5, 10, 20, 50] {
                for hours in [0.25, 1.0, 4.0, 24.0] {
                    let fleet = Fleet { hosts, hours, same_hosts, share, ..Fleet::default() };
                    let (mut low, mut high) = (0.0_f64, 1.5_f64);
                    while high - low > 0.02 {
                        let middle = f64::midpoint(low, high);
                        let found =
                            found(fleet, Change::Factor(1.0 + middle), COMPARISONS_OF_SEARCH, 4);
                        if found * 5 >= COMPARISONS_OF_SEARCH * 4 {
                            high = middle
                        } else {
                            low = middle
                        }
                    }
                    let same = if same_hosts { "same_" } else { "" };
                    println!(
                        "compare.{same}{hosts}_hosts_{hours}_hours_{}_percent {:.0} %",
                        (share * 100.0) as u32,
                        100.0 * high
                    );
                }
            }
        }
    }
}
