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
    report::{Answer, Change, FunctionChange, Metric, Report, Verdict, Whole},
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

/// A function with this share of everything, such as `main` with what it calls, is as good as the whole.
pub(crate) const THE_WHOLE: f64 = 0.95;

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
    adjust(&mut judged, |metric| &mut metric.share);
    adjust(&mut judged, |metric| &mut metric.cost);
    let centre = centre(&judged);
    let callers = |id| {
        let mut caller = base.votes(id);
        caller.add(compare.votes(id));
        caller.function
    };
    let whole = setup.whole(settings);
    for metric in judged.iter_mut().flat_map(|it| [&mut it.own, &mut it.total]) {
        metric.verdict = verdict(metric, centre, &whole, functions_q, settings);
    }
    // Without a base nothing has moved from there.
    let all = if whole.cost.base > 0.0 { whole.cost.base } else { 1.0 };
    mark_shifts(&mut judged, &pieces, all, functions, &callers);
    mark_shifts_to_callees(&mut judged, functions);
    let answer = if setup.is_enough(settings) {
        answer(&whole, &judged, &latencies)
    } else {
        Answer::NotEnoughData
    };
    let mut functions: Vec<FunctionChange> =
        judged.into_iter().map(|judged| judged.into_change(functions)).collect();
    functions.sort_by(|a, b| {
        let (of_a, of_b) = (prominence(a, &whole), prominence(b, &whole));
        let by_weight = (of_b.own.total_cmp(&of_a.own)).then(of_b.total.total_cmp(&of_a.total));
        of_a.rank.cmp(&of_b.rank).then(by_weight).then_with(|| a.name.cmp(&b.name))
    });
    Report { answer, basis: setup.basis, whole, latencies, functions, untested }
}

/// What is shown first.
struct Prominence {
    rank: u8,
    /// By how much what a function does by itself has changed.
    own: f64,
    /// With what it calls, for its size: of a stack in which all have changed by as much that is the one of which most
    /// has changed.
    total: f64,
}

/// Of several functions the one where the change is made comes first: it is in what a function does by itself, unless
/// all leaves are the same, as where locks are let go. Changes are of costs where everything has changed, else of shares.
fn prominence(function: &FunctionChange, whole: &Whole) -> Prominence {
    let is_of_cost = whole.verdict.is_alarm() && whole.cost.base > 0.0;
    let change = |metric: &Metric| {
        let (change, unit) =
            if is_of_cost { (&metric.cost, whole.cost.base) } else { (&metric.share, 1.0) };
        (change.difference.abs() / unit, (change.base + change.compare) / 2.0 / unit)
    };
    let rank = function.verdict().rank();
    let counts = |metric: &Metric| metric.verdict.rank() == rank;
    let own = if counts(&function.own) { change(&function.own).0 } else { 0.0 };
    let (difference, mean) = change(&function.total);
    let is_counted = counts(&function.total) && mean > 0.0;
    Prominence { rank, own, total: if is_counted { difference * difference / mean } else { 0.0 } }
}

/// The change of a metric that is tested.
type PickChange = fn(&mut Metric) -> &mut Change;

/// Adjusts p-values for how many hypotheses there are. A function that calls nothing is one.
fn adjust(judged: &mut [Judged], change: PickChange) {
    let p = |metric: &mut Metric| {
        if metric.verdict == Verdict::Untested { None } else { change(metric).p }
    };
    let mut all = Vec::new();
    for it in judged.iter_mut() {
        all.extend(p(&mut it.total));
        all.extend(p(&mut it.own).filter(|_| !it.is_leaf));
    }
    let mut adjusted = benjamini_hochberg(&all).into_iter();
    for it in judged.iter_mut() {
        if p(&mut it.total).is_some() {
            change(&mut it.total).adjusted_p = adjusted.next();
        }
        if p(&mut it.own).is_some() {
            let of_total = change(&mut it.total).adjusted_p;
            change(&mut it.own).adjusted_p = if it.is_leaf { of_total } else { adjusted.next() };
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

/// What a metric's change means, but for costs that only moved.
///
/// `centre` is by what factor the shares of others changed, so that `ratio / centre` is how a function changed beside
/// them. Shares are tested in any case. Costs are only where everything costs more, or less, and only for what went
/// the same way and further than others: the test of the whole stands before them.
fn verdict(
    metric: &Metric,
    centre: f64,
    whole: &Whole,
    functions_q: f64,
    settings: &Settings,
) -> Verdict {
    if metric.verdict == Verdict::Untested {
        return Verdict::Untested;
    }
    let is_significant = |change: &Change| change.adjusted_p.is_some_and(|p| p <= functions_q);
    let (share, cost) = (&metric.share, &metric.cost);
    let beside_others = share.ratio.map_or(f64::INFINITY, |ratio| ratio / centre - 1.0);
    let alarm =
        |difference: f64| if difference > 0.0 { Verdict::Regressed } else { Verdict::Improved };

    let goes_with_all = whole.verdict.is_alarm() && whole.cost.difference * cost.difference > 0.0;
    let is_the_whole = share.base.min(share.compare) >= THE_WHOLE;
    if goes_with_all && !is_the_whole && is_significant(cost) {
        let is_more_than_others =
            beside_others * cost.difference > 0.0 && beside_others.abs() >= settings.min_effect;
        if is_more_than_others
            && 100.0 * cost.difference.abs() >= settings.min_effect_pp * whole.cost.base
        {
            return alarm(cost.difference);
        }
    }
    if !is_significant(share) {
        return Verdict::Unchanged;
    }
    let own_change = share.ratio.map_or(f64::INFINITY, |ratio| ratio - 1.0);
    let is_only_others =
        beside_others.abs() < settings.min_effect && own_change.abs() >= settings.min_effect;
    if is_outgrown(metric, whole) || beside_others * share.difference <= 0.0 || is_only_others {
        return Verdict::Displaced;
    }
    let is_small = 100.0 * share.difference.abs() < settings.min_effect_pp;
    if is_small || beside_others.abs() < settings.min_effect {
        Verdict::Small
    } else {
        alarm(share.difference)
    }
}

/// Whether a cost has gone where its share has, and half as far at least. Of two functions that share everything one
/// cannot grow without the other's share becoming less: that is no shift unless the other costs less.
fn has_moved(metric: &Metric) -> bool {
    let relative = |change: &Change| change.ratio.map_or(f64::INFINITY, |ratio| ratio - 1.0);
    let (share, cost) = (relative(&metric.share), relative(&metric.cost));
    share * cost > 0.0 && cost.abs() >= share.abs().min(f64::MAX) / 2.0
}

fn mark_shifts(
    judged: &mut [Judged],
    pieces: &[(FunctionId, f64, f64)],
    all: f64,
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
            base_cost: metric.cost.base / all,
            compare_cost: metric.cost.compare / all,
            changed: metric.verdict.is_alarm() && has_moved(metric),
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
        base_cost: *base,
        compare_cost: *compare,
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
