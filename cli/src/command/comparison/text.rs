//! A comparison for the terminal.

use std::fmt::Write as _;

use everflame_compare::{Answer, Comparison, Metric, Verdict};

use super::{
    caveats, cost, describe, notable, points, probability, relative, relative_interval, signed,
};
use crate::command::more;
use crate::table::{Table, printable};
use crate::units::{amount, percent};

/// The comparison with at most `limit` functions that changed, and what it rests on.
pub(crate) fn text(comparison: &Comparison, limit: usize, width: Option<usize>) -> String {
    let mut out = heading(comparison);
    out.push_str(&latencies(comparison));
    out.push_str(&functions(comparison, limit, width));
    for caveat in caveats(&comparison.report.basis, comparison.report.answer) {
        let _ = writeln!(out, "note: {caveat}");
    }
    let left_out = comparison.base.warm_up_windows + comparison.compare.warm_up_windows;
    if comparison.report.answer == Answer::NotEnoughData && left_out > 0 {
        let _ = writeln!(
            out,
            "note: {left_out} windows were left out as instances had just started (--warm-up)"
        );
    }
    out
}

fn heading(comparison: &Comparison) -> String {
    let Comparison { service, kind, unit, base, compare, report } = comparison;
    let name =
        |name: &str| if name.is_empty() { "another time".to_owned() } else { printable(name) };
    let whole = &report.whole;
    let per = report.basis.cost_per;
    let mut out = String::new();
    if !service.is_empty() {
        let _ = write!(out, "{}, ", printable(service));
    }
    let answer = report.answer.name();
    let _ = writeln!(out, "{kind}: {answer} from {} to {}", name(&base.name), name(&compare.name));
    let _ = writeln!(out, "{}", describe(&report.basis));
    let (before, after) = (cost(whole.cost.base, unit, per), cost(whole.cost.compare, unit, per));
    let _ = write!(out, "all of it: {before} before, {after} after, {}", relative(&whole.cost));
    if whole.cost.ratio_interval.is_some() {
        let _ = write!(
            out,
            " (95 %: {}; p {})",
            relative_interval(&whole.cost),
            probability(whole.cost.p)
        );
    }
    let _ = match whole.verdict {
        Verdict::Regressed | Verdict::Improved => writeln!(out, ": {}", whole.verdict.name()),
        _ => match whole.changed_at_most.filter(|_| whole.verdict == Verdict::Unchanged) {
            Some(most) => writeln!(out, ": no change larger than {}", percent(most)),
            None => writeln!(out),
        },
    };
    out
}

fn latencies(comparison: &Comparison) -> String {
    let mut out = String::new();
    for latency in &comparison.report.latencies {
        let time = |ns: f64| amount(ns, "nanoseconds");
        let (low, high) =
            (latency.ratio_interval.low, latency.ratio_interval.high.unwrap_or(f64::INFINITY));
        let verdict = match (latency.changed, latency.ratio > 1.0) {
            (false, _) => "",
            (true, true) => ": longer",
            (true, false) => ": shorter",
        };
        let _ = writeln!(
            out,
            "p{:.0}: {} before, {} after, {} (95 %: {} to {}; p {}){verdict}",
            latency.quantile * 100.0,
            time(latency.base),
            time(latency.compare),
            signed(latency.ratio - 1.0),
            signed(low - 1.0),
            signed(high - 1.0),
            probability(Some(latency.p)),
        );
    }
    out
}

fn functions(comparison: &Comparison, limit: usize, width: Option<usize>) -> String {
    let report = &comparison.report;
    let mut rows = Table::new(&[
        "<CHANGE",
        "<BY",
        "BEFORE",
        "AFTER",
        "SHARE",
        "COST",
        "<95 %",
        "ADJUSTED P",
        "<FUNCTION",
    ]);
    let mut shown = 0;
    let mut hidden = 0;
    let mut shifts: Vec<String> = Vec::new();
    for function in &report.functions {
        for (by, metric) in notable(function) {
            if shown >= limit {
                hidden += 1;
                continue;
            }
            shown += 1;
            if let Verdict::Shifted { within, among } = &metric.verdict {
                let line = shift(within.as_deref(), among);
                if !shifts.contains(&line) {
                    shifts.push(line);
                }
            }
            rows.row(vec![
                metric.verdict.name().to_owned(),
                by.to_owned(),
                percent(metric.share.base),
                percent(metric.share.compare),
                points(metric.share.difference),
                relative(&metric.cost),
                relative_interval(&metric.cost),
                probability(decisive_p(metric)),
                function.name.clone(),
            ]);
        }
    }
    let mut out = if shown == 0 { String::new() } else { rows.render(width) };
    out.push_str(&more(hidden));
    for line in shifts {
        let _ = writeln!(out, "{line}");
    }
    let changed = report.functions.iter().filter(|function| !notable(function).is_empty()).count();
    let unchanged = report.functions.len() - changed;
    let others = if changed == 0 { "" } else { "other " };
    let _ = writeln!(
        out,
        "{unchanged} {others}functions did not change; {} were seen too little to tell",
        report.untested
    );
    out
}

/// Which of the two tests has found it: that of the share, or that of the cost.
fn decisive_p(metric: &Metric) -> Option<f64> {
    let p = [metric.share.adjusted_p, metric.cost.adjusted_p];
    p.into_iter().flatten().reduce(f64::min)
}

fn shift(within: Option<&str>, among: &[String]) -> String {
    let among: Vec<String> = among.iter().map(|name| printable(name)).collect();
    match within {
        Some(within) => format!(
            "shifted within {}, which costs what it did: {}",
            printable(within),
            among.join(", ")
        ),
        None => format!("shifted: {}", among.join(", ")),
    }
}
