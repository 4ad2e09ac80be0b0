//! How often comparisons of fleets whose truth is known are right.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod simulated;

use everflame_compare::{Answer, Report, Verdict};
use simulated::{Change, Fleet, alarms, chosen};

/// Of so many comparisons; in how many `is_so`.
fn count(
    fleet: Fleet,
    change: Change,
    comparisons: usize,
    is_so: impl Fn(&Report) -> bool,
) -> usize {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..comparisons).filter(|_| is_so(&fleet.compare(change, &mut rng).report)).count()
}

fn is_found(report: &Report) -> bool {
    let found = report.functions.iter().find(|it| it.name == chosen());
    found.is_some_and(|it| it.own.verdict == Verdict::Regressed)
}

/// 5 % of them, and what chance adds to that. Where the same hosts run both, what they vary by is of no account: one
/// variation will do here, and `cargo xtask bench compare` has all.
#[test]
fn equal_versions_rarely_differ() {
    for (same_hosts, variations) in [(false, &[0.05, 0.1, 0.2][..]), (true, &[0.1][..])] {
        for hosts in [5, 10, 20] {
            for &variation in variations {
                let fleet =
                    Fleet { hosts, variation, same_hosts, functions: 100, ..Fleet::default() };
                let false_alarms = count(fleet, Change::Nothing, 1_000, alarms);
                println!(
                    "{hosts} hosts, same {same_hosts}, {variation}: {false_alarms} of 1000 false alarms"
                );
                assert!(false_alarms <= 67, "{fleet:?}: {false_alarms}");
            }
        }
    }
}

#[test]
fn function_of_a_percent_that_is_a_fifth_slower_is_found() {
    let found = count(Fleet::default(), Change::Factor(1.2), 200, is_found);
    println!("20 % of 1 %: found in {found} of 200");
    assert!(found >= 160, "{found}");
}

#[test]
fn function_of_five_percent_that_is_a_tenth_slower_is_found_on_the_same_hosts() {
    let fleet = Fleet { share: 0.05, same_hosts: true, ..Fleet::default() };
    let found = count(fleet, Change::Factor(1.1), 200, is_found);
    let unpaired = count(Fleet { same_hosts: false, ..fleet }, Change::Factor(1.1), 200, is_found);
    println!("10 % of 5 %: found in {found} of 200 on the same hosts, in {unpaired} on others");
    assert!(found >= 180, "{found}");
}

#[test]
fn function_that_is_split_is_no_alarm() {
    for (share, first) in [(0.01, 0.5), (0.01, 0.8), (0.05, 0.6), (0.002, 0.5)] {
        let fleet = Fleet { share, ..Fleet::default() };
        let quiet = count(fleet, Change::Split(first), 200, |report| !alarms(report));
        println!("{share} split at {first}: quiet in {quiet} of 200");
        assert!(quiet >= 190, "{share}, {first}: {quiet}");
    }
}

#[test]
fn function_that_is_most_of_it_does_not_make_others_change() {
    let fleet = Fleet { share: 0.6, same_hosts: true, functions: 100, ..Fleet::default() };
    let right = count(fleet, Change::Factor(1.3), 100, |report| {
        let alarming: Vec<_> = report
            .functions
            .iter()
            .filter(|it| it.metrics().iter().any(|metric| metric.verdict.is_alarm()))
            .map(|it| it.name.clone())
            .collect();
        alarming == [chosen()]
    });
    println!("30 % of 60 %: nothing else in {right} of 100");
    assert!(right >= 95, "{right}");
}

/// What is simulated is what it is said to be.
#[test]
fn hosts_vary_as_they_should() {
    let fleet =
        Fleet { hosts: 400, share: 0.05, functions: 20, variation: 0.2, ..Fleet::default() };
    let comparison = fleet.compare(Change::Nothing, &mut fastrand::Rng::with_seed(1));
    let chosen = usize::try_from(simulated::CHOSEN).unwrap() - 1;
    // Of the cost itself, as a host's load is in all of its functions.
    let of_host = |samples: &Vec<f64>| samples[chosen] / samples.iter().sum::<f64>();
    let shares: Vec<f64> = comparison.counts[0].iter().map(of_host).collect();
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let variance =
        shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / shares.len() as f64;
    let variation = variance.sqrt() / mean;
    println!("share {mean:.4}, variation {variation:.3}");
    assert!(
        (mean - 0.05).abs() < 0.003 && (0.18..0.24).contains(&variation),
        "{mean}, {variation}"
    );
}

#[test]
fn few_hosts_are_not_enough() {
    let fleet = Fleet { hosts: 4, functions: 20, share: 0.5, ..Fleet::default() };
    let comparison = fleet.compare(Change::Factor(9.0), &mut fastrand::Rng::with_seed(1));
    let report = comparison.report;
    assert_eq!(report.answer, Answer::NotEnoughData);
    assert_eq!((report.basis.base.replicates, report.basis.needed), (4, 5));
    // What was seen is shown all the same.
    assert!(report.whole.cost.ratio.unwrap() > 1.0 && report.whole.cost.p.is_none());
}
