//! Whether versions differ, in words: shared by `everflame diff --service` and `everflame gate`.

pub(crate) mod ask;
pub(crate) mod files;
pub(crate) mod text;

use std::fmt::Write as _;

use everflame_compare::{
    Answer, Basis, Change, CostPer, FunctionChange, Interval, Metric, Replication, Verdict,
};

use crate::units;

/// What a cost is, with its unit: of a second, of a request, or a share where there is neither.
pub(crate) fn cost(amount: f64, unit: &str, per: CostPer) -> String {
    match per {
        CostPer::Second => units::rate(amount, unit),
        CostPer::Request => format!("{} per request", units::amount(amount, unit)),
        CostPer::Nothing => units::percent(amount),
    }
}

/// A ratio as a change: `+12.3%`, or `new` without a base.
pub(crate) fn relative(change: &Change) -> String {
    match change.ratio {
        Some(ratio) => signed(ratio - 1.0),
        None if change.compare > 0.0 => "new".to_owned(),
        None => signed(0.0),
    }
}

/// Where the change is believed to be: `+2.1% to +20.4%`; `-` when nothing is known.
pub(crate) fn relative_interval(change: &Change) -> String {
    match change.ratio_interval {
        Some(Interval { low, high: Some(high) }) => {
            format!("{} to {}", signed(low - 1.0), signed(high - 1.0))
        }
        Some(Interval { low, high: None }) => format!("more than {}", signed(low - 1.0)),
        None => "-".to_owned(),
    }
}

/// A difference of shares: `+0.42 pp`.
pub(crate) fn points(difference: f64) -> String {
    // No "-0.00".
    let rounded = (difference * 1e4).round() / 1e2 + 0.0;
    format!("{rounded:+.2} pp")
}

pub(super) fn signed(change: f64) -> String {
    match change {
        change if change.abs() < 0.0005 => "0.0%".to_owned(),
        change if change < 9.995 => format!("{:+.1}%", change * 100.0),
        change => format!("x{:.0}", change + 1.0),
    }
}

/// A probability, to one digit.
pub(crate) fn probability(p: Option<f64>) -> String {
    match p {
        None => "-".to_owned(),
        Some(p) if p < 0.0001 => "<0.0001".to_owned(),
        Some(p) => format!("{p:.4}"),
    }
}

/// What was compared with what, in a sentence.
pub(crate) fn describe(basis: &Basis) -> String {
    let unit = |count: usize| match (basis.replicate, count) {
        (Replication::Host, 1) => "host",
        (Replication::Host, _) => "hosts",
        (Replication::Instance, 1) => "instance",
        (Replication::Instance, _) => "instances",
    };
    let (base, compare) = (basis.base.replicates, basis.compare.replicates);
    let mut text = if basis.paired {
        format!("{base} {} that ran both", unit(base))
    } else {
        format!("{base} {} before, {compare} after", unit(compare))
    };
    let samples = basis.base.samples + basis.compare.samples;
    let _ = write!(text, "; {} samples", units::value(samples as i64, "count"));
    text
}

/// What to keep in mind when reading it.
pub(crate) fn caveats(basis: &Basis, answer: Answer) -> Vec<String> {
    let mut caveats = Vec::new();
    if answer == Answer::NotEnoughData {
        caveats.push(not_enough(basis));
        return caveats;
    }
    if basis.replicate == Replication::Instance {
        let hosts = basis.base.hosts.min(basis.compare.hosts);
        let hosts = if hosts == 1 { "1 host".to_owned() } else { format!("{hosts} hosts") };
        caveats.push(format!(
            "instances of {hosts} were compared: what differs from host to host may look like a change"
        ));
    }
    match basis.cost_per {
        CostPer::Second => caveats.push(
            "costs are per second: with more requests all of them rise, while shares do not"
                .to_owned(),
        ),
        CostPer::Nothing => {
            caveats.push("no durations are known: only shares were compared".to_owned());
        }
        CostPer::Request => {}
    }
    caveats
}

/// What is missing, and what would be enough.
fn not_enough(basis: &Basis) -> String {
    let missing = |side: &str, replicates: usize, hosts: usize, instances: usize| {
        let more = basis.needed.saturating_sub(replicates.max(instances));
        let name = |count: usize, one: &str| {
            if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
        };
        (replicates < basis.needed).then(|| {
            format!(
                "{side}: {} with {}; {more} more hosts or instances would do",
                name(hosts, "host"),
                name(instances, "instance")
            )
        })
    };
    let sides = [
        missing("before", basis.base.replicates, basis.base.hosts, basis.base.instances),
        missing("after", basis.compare.replicates, basis.compare.hosts, basis.compare.instances),
    ];
    let sides: Vec<String> = sides.into_iter().flatten().collect();
    format!("{} hosts or instances are needed on each side ({})", basis.needed, sides.join("; "))
}

/// The metrics of a function that somebody should see, with what they are called.
pub(crate) fn notable(function: &FunctionChange) -> Vec<(&'static str, &Metric)> {
    let both = [("self", &function.own), ("total", &function.total)];
    let is_notable = |metric: &Metric| {
        metric.verdict.is_alarm() || matches!(metric.verdict, Verdict::Shifted { .. })
    };
    let mut notable: Vec<_> = both.into_iter().filter(|(_, metric)| is_notable(metric)).collect();
    // Of a function that calls nothing the two are one.
    let is_same = notable.len() == 2
        && (function.own.share.difference - function.total.share.difference).abs()
            <= 0.001 * function.own.share.difference.abs();
    notable.truncate(if is_same { 1 } else { 2 });
    notable
}

#[cfg(test)]
mod tests {
    use everflame_compare::SideBasis;

    use super::*;

    fn basis(base: SideBasis, compare: SideBasis) -> Basis {
        let cost_per = CostPer::Second;
        Basis { replicate: Replication::Host, paired: false, cost_per, base, compare, needed: 5 }
    }

    fn side(hosts: usize, instances: usize) -> SideBasis {
        SideBasis { replicates: hosts, hosts, instances, ..SideBasis::default() }
    }

    #[test]
    fn too_little_is_said_with_what_would_be_enough() {
        let caveats = caveats(&basis(side(20, 40), side(1, 2)), Answer::NotEnoughData);
        assert_eq!(
            caveats,
            [
                "5 hosts or instances are needed on each side (after: 1 host with 2 instances; 3 more hosts or \
              instances would do)"
            ]
        );
    }

    #[test]
    fn numbers_are_read_at_a_glance() {
        assert_eq!(
            [signed(0.1234), signed(-0.5), signed(0.0), signed(19.0)],
            ["+12.3%", "-50.0%", "0.0%", "x20"]
        );
        assert_eq!([points(0.00421), points(-0.0)], ["+0.42 pp", "+0.00 pp"]);
        assert_eq!(
            [probability(Some(0.03)), probability(Some(1e-9)), probability(None)],
            ["0.0300", "<0.0001", "-"]
        );
    }
}
