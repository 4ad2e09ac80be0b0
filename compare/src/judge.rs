//! From sums to verdicts.
//!
//! sums -> replicates (`setup`) -> a test of the whole, and one of each function's share -> adjusted for how many
//! there are -> what matters, what only moved, what was only displaced.
//!
//! The whole is tested at 1 % and functions at a false discovery rate of 4 %, so that of comparisons in which
//! nothing changed at most 5 % say that something did. Which functions are tested must not depend on how they
//! differ: it is decided by what both sides have together.

use crate::{
    latency::LatencyChange,
    multiple::benjamini_hochberg,
    report::{Answer, FunctionChange, Metric, Report, Verdict, Whole},
    setup::{Judged, Setup, Tested},
    shift::{self, Moving, Part, shifts},
    sums::{FunctionId, Functions, Side},
};

/// What is tested, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Replicates that a side must have.
    pub min_replicates: usize,
    /// Of intervals, from 0 to 1.
    pub confidence: f64,
    /// Comparisons without a change of the whole that may say that there is one.
    pub whole_alpha: f64,
    /// Of functions that are said to have changed, how many may not have.
    pub functions_q: f64,
    /// Comparisons without a change of a quantile of latencies that may say that there is one.
    pub latency_alpha: f64,
    /// Samples of both sides that a function must have to be tested.
    pub min_samples: f64,
    /// The share of both sides together that a function must have to be tested, in percentage points.
    pub min_share_pp: f64,
    /// Changes of a share by less do not matter, in percentage points.
    pub min_effect_pp: f64,
    /// Nor do changes by less than this share of the base.
    pub min_effect: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_replicates: 5,
            confidence: 0.95,
            whole_alpha: 0.01,
            functions_q: 0.04,
            latency_alpha: 0.005,
            min_samples: 30.0,
            min_share_pp: 0.05,
            min_effect_pp: 0.1,
            min_effect: 0.05,
        }
    }
}

/// A function that is most of a side must not pass for how the rest has changed.
const MAX_CENTRE_WEIGHT: f64 = 0.05;

/// Costs that differ by what may be chance in one of twenty have not changed, for all that is known.
const UNCHANGED_P: f64 = 0.05;

/// Which quantiles of latencies are compared.
pub(crate) const QUANTILES: [f64; 2] = [0.5, 0.99];

/// Compares two sides.
pub fn compare(functions: &Functions, base: &Side, compare: &Side, settings: &Settings) -> Report {
    let setup = Setup::new(base, compare, settings);
    let Tested { mut judged, pieces, untested } = setup.test_functions(settings);
    let latencies = setup.latencies(settings);
    // Whatever is tested besides, all together are to be wrong as rarely.
    let functions_q = settings.functions_q - settings.latency_alpha * latencies.len() as f64;
    adjust(&mut judged, functions_q);
    let centre = centre(&judged);
    let callers = |id| {
        let mut caller = base.votes(id);
        caller.add(compare.votes(id));
        caller.function
    };
    let whole = setup.whole(settings);
    weigh(&mut judged, centre, &whole, settings);
    mark_shifts(&mut judged, &pieces, functions, &callers);
    mark_shifts_to_callees(&mut judged, functions);
    let answer = if setup.is_enough(settings) {
        answer(&whole, &judged, &latencies)
    } else {
        Answer::NotEnoughData
    };
    let mut functions: Vec<FunctionChange> =
        judged.into_iter().map(|judged| judged.into_change(functions)).collect();
    let key = |function: &FunctionChange| {
        let weight =
            |metric: &Metric| if metric.verdict.is_alarm() { metric.weight() } else { 0.0 };
        let alarms = function.metrics().map(weight).into_iter().fold(0.0, f64::max);
        let all = function.metrics().map(Metric::weight).into_iter().fold(0.0, f64::max);
        (function.verdict().rank(), alarms, all)
    };
    functions.sort_by(|a, b| {
        let ((a_rank, a_alarms, a_all), (b_rank, b_alarms, b_all)) = (key(a), key(b));
        let by_weight = b_alarms.total_cmp(&a_alarms).then(b_all.total_cmp(&a_all));
        a_rank.cmp(&b_rank).then(by_weight).then_with(|| a.name.cmp(&b.name))
    });
    Report { answer, basis: setup.basis, whole, latencies, functions, untested }
}

/// Adjusts for how many hypotheses there are.
fn adjust(judged: &mut [Judged], functions_q: f64) {
    let tested =
        |metric: &Metric| (metric.verdict != Verdict::Untested).then_some(metric.share.p).flatten();
    let mut p = Vec::new();
    for it in judged.iter() {
        p.extend(tested(&it.total));
        p.extend(tested(&it.own).filter(|_| !it.is_leaf));
    }
    let mut adjusted = benjamini_hochberg(&p).into_iter();
    for it in judged.iter_mut() {
        if tested(&it.total).is_some() {
            it.total.share.adjusted_p = adjusted.next();
        }
        if tested(&it.own).is_some() {
            let of_total = it.total.share.adjusted_p;
            it.own.share.adjusted_p = if it.is_leaf { of_total } else { adjusted.next() };
        }
    }
    for metric in judged.iter_mut().flat_map(|it| [&mut it.own, &mut it.total]) {
        // For now; what matters of it comes out later.
        if metric.share.adjusted_p.is_some_and(|p| p <= functions_q) {
            let is_more = metric.share.difference > 0.0;
            metric.verdict = if is_more { Verdict::Regressed } else { Verdict::Improved };
        }
    }
}

/// By what factor shares changed of what did not change: the weighted median of all functions' own. Where one
/// function grows, the shares of all others shrink.
fn centre(judged: &[Judged]) -> f64 {
    let mut ratios: Vec<(f64, f64)> = judged
        .iter()
        .filter(|it| it.own.verdict != Verdict::Untested)
        .map(|it| {
            let share = &it.own.share;
            let ratio = share.ratio.unwrap_or(f64::INFINITY);
            (ratio, ((share.base + share.compare) / 2.0).min(MAX_CENTRE_WEIGHT))
        })
        .collect();
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = ratios.iter().map(|(_, weight)| weight).sum::<f64>() / 2.0;
    let mut below = 0.0;
    let median = ratios.iter().find(|(_, weight)| {
        below += weight;
        below >= half
    });
    median.map_or(1.0, |(ratio, _)| if *ratio > 0.0 && ratio.is_finite() { *ratio } else { 1.0 })
}

/// Whether everything together changed and this did not, so that its share went the other way. (With few functions,
/// such as allocate, there is no median one to tell that by.)
fn is_outgrown(metric: &Metric, whole: &Whole) -> bool {
    let is_unchanged = metric.cost.p.is_some_and(|p| p > UNCHANGED_P);
    whole.verdict.is_alarm()
        && is_unchanged
        && whole.cost.difference * metric.share.difference < 0.0
}

/// Leaves of what differs what matters, and is not just displaced by others.
fn weigh(judged: &mut [Judged], centre: f64, whole: &Whole, settings: &Settings) {
    for metric in judged.iter_mut().flat_map(|it| [&mut it.own, &mut it.total]) {
        if !metric.verdict.is_alarm() {
            continue;
        }
        let share = &metric.share;
        let relative = share.ratio.map_or(f64::INFINITY, |ratio| ratio / centre - 1.0);
        let is_displaced = is_outgrown(metric, whole)
            || relative * share.difference <= 0.0
            || (relative.abs() < settings.min_effect
                && (share.ratio.unwrap_or(0.0) - 1.0).abs() >= settings.min_effect);
        if is_displaced {
            metric.verdict = Verdict::Displaced;
        } else if 100.0 * share.difference.abs() < settings.min_effect_pp
            || relative.abs() < settings.min_effect
        {
            metric.verdict = Verdict::Small;
        }
    }
}

fn mark_shifts(
    judged: &mut [Judged],
    pieces: &[(FunctionId, f64, f64)],
    functions: &Functions,
    caller: &impl Fn(FunctionId) -> Option<FunctionId>,
) {
    let mut moving = Vec::new();
    for it in judged.iter() {
        let of = |part, metric: &Metric| Moving {
            function: it.id,
            part,
            caller: caller(it.id),
            base: metric.share.base,
            compare: metric.share.compare,
            changed: metric.verdict.is_alarm(),
        };
        moving.push(of(Part::Total, &it.total));
        if !it.is_leaf {
            moving.push(of(Part::Own, &it.own));
        }
    }
    moving.extend(pieces.iter().map(|(id, base, compare)| Moving {
        function: *id,
        part: Part::Total,
        caller: caller(*id),
        base: *base,
        compare: *compare,
        changed: false,
    }));
    for shift in shifts(&moving) {
        let name = |id: FunctionId| functions.info(id).name.clone();
        let mut among: Vec<String> = shift.among.iter().map(|(id, _)| name(*id)).collect();
        among.dedup();
        let verdict = Verdict::Shifted { within: shift.within.map(name), among };
        for (id, part) in shift.among {
            for it in judged.iter_mut().filter(|it| it.id == id) {
                let metrics = match part {
                    Part::Own => [Some(&mut it.own), None],
                    Part::Total => [Some(&mut it.total), it.is_leaf.then_some(&mut it.own)],
                };
                for metric in
                    metrics.into_iter().flatten().filter(|metric| metric.verdict.is_alarm())
                {
                    metric.verdict = verdict.clone();
                }
            }
        }
    }
}

/// What a function has more by itself, and not with all that it calls, came from those, whoever else calls them.
fn mark_shifts_to_callees(judged: &mut [Judged], functions: &Functions) {
    for it in judged.iter_mut().filter(|it| !it.is_leaf && it.own.verdict.is_alarm()) {
        let (own, total) = (it.own.share.difference, it.total.share.difference);
        if !it.total.verdict.is_alarm() && total.abs() <= shift::TOLERANCE * own.abs() {
            let name = functions.info(it.id).name.clone();
            it.own.verdict = Verdict::Shifted { within: Some(name.clone()), among: vec![name] };
        }
    }
}

fn answer(whole: &Whole, judged: &[Judged], latencies: &[LatencyChange]) -> Answer {
    let verdicts = || {
        judged.iter().flat_map(|it| [&it.own.verdict, &it.total.verdict]).chain([&whole.verdict])
    };
    let is_longer = |it: &LatencyChange| it.changed && it.ratio > 1.0;
    let is_shorter = |it: &LatencyChange| it.changed && it.ratio < 1.0;
    if verdicts().any(|verdict| *verdict == Verdict::Regressed) || latencies.iter().any(is_longer) {
        Answer::Regressed
    } else if verdicts().any(|verdict| *verdict == Verdict::Improved)
        || latencies.iter().any(is_shorter)
    {
        Answer::Improved
    } else {
        Answer::NoChange
    }
}

impl Judged {
    fn into_change(self, functions: &Functions) -> FunctionChange {
        let info = functions.info(self.id);
        FunctionChange {
            name: info.name.clone(),
            filename: info.filename.clone(),
            own: self.own,
            total: self.total,
        }
    }
}
