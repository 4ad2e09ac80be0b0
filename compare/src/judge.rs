//! From sums to verdicts.
//!
//! sums -> replicates ([`Setup`]) -> a test of the whole, and one of each function's share -> adjusted for how many
//! there are -> what matters, what only moved, what was only displaced.
//!
//! The whole is tested at 1 % and functions at a false discovery rate of 4 %, so that of comparisons in which
//! nothing changed at most 5 % say that something did. Which functions are tested must not depend on how they
//! differ: it is decided by what both sides have together.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    estimate::{Means, Observation},
    multiple::benjamini_hochberg,
    report::{
        Answer, Basis, Change, CostPer, FunctionChange, Metric, Replication, Report, SideBasis,
        Verdict, Whole,
    },
    shift::{self, Moving, Part, shifts},
    sums::{FunctionId, Functions, Replicate, Side, Sum},
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
            min_samples: 30.0,
            min_share_pp: 0.05,
            min_effect_pp: 0.1,
            min_effect: 0.05,
        }
    }
}

/// A function that is most of a side must not pass for how the rest has changed.
const MAX_CENTRE_WEIGHT: f64 = 0.05;

/// Into which functions one was split is looked for down to this part of the share that is tested.
const MIN_PIECE: f64 = 0.1;

/// Where a function calls nothing that matters, its two metrics are one.
const SAME_METRIC: f64 = 0.999;

/// Compares two sides.
pub fn compare(functions: &Functions, base: &Side, compare: &Side, settings: &Settings) -> Report {
    let setup = Setup::new(base, compare, settings);
    let Tested { mut judged, pieces, untested } = setup.test_functions(settings);
    adjust(&mut judged, settings);
    let centre = centre(&judged);
    let callers = |id| {
        let mut caller = base.votes(id);
        caller.add(compare.votes(id));
        caller.function
    };
    weigh(&mut judged, centre, settings);
    mark_shifts(&mut judged, &pieces, functions, &callers);
    mark_shifts_to_callees(&mut judged, functions);
    let whole = setup.whole(settings);
    let answer =
        if setup.is_enough(settings) { answer(&whole, &judged) } else { Answer::NotEnoughData };
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
    Report { answer, basis: setup.basis, whole, functions, untested }
}

/// A function on its way to a verdict.
struct Judged {
    id: FunctionId,
    own: Metric,
    total: Metric,
    /// Whether the two are the same hypothesis.
    is_leaf: bool,
}

/// All functions that were seen.
struct Tested {
    judged: Vec<Judged>,
    /// Functions that cost too little to be tested, and are new or gone: into which one may have been split. With
    /// their shares on both sides.
    pieces: Vec<(FunctionId, f64, f64)>,
    untested: usize,
}

/// Replicates of both sides, put side by side.
struct Setup {
    base: Vec<Replicate>,
    /// Of a paired comparison in the order of `base`.
    compare: Vec<Replicate>,
    /// Seconds or requests of each.
    base_exposure: Vec<f64>,
    compare_exposure: Vec<f64>,
    basis: Basis,
}

impl Setup {
    fn new(base: &Side, compare: &Side, settings: &Settings) -> Self {
        let cost_per = cost_per(base, compare);
        let (base_hosts, compare_hosts) = (usable(base.hosts()), usable(compare.hosts()));
        let (base_instances, compare_instances) =
            (usable(base.instances()), usable(compare.instances()));
        let counts = [
            (base_hosts.len(), base_instances.len()),
            (compare_hosts.len(), compare_instances.len()),
        ];
        let enough = |base: usize, compare: usize| base.min(compare) >= settings.min_replicates;
        let by_host = enough(base_hosts.len(), compare_hosts.len())
            || !enough(base_instances.len(), compare_instances.len());
        let (replicate, mut base, mut compare) = if by_host {
            (Replication::Host, base_hosts, compare_hosts)
        } else {
            (Replication::Instance, base_instances, compare_instances)
        };
        let both: BTreeSet<String> =
            base.keys().filter(|name| compare.contains_key(*name)).cloned().collect();
        let paired = both.len() >= settings.min_replicates
            && 2 * both.len() >= base.len().min(compare.len());
        if paired {
            base.retain(|name, _| both.contains(name));
            compare.retain(|name, _| both.contains(name));
        }
        let (base, compare): (Vec<_>, Vec<_>) =
            (base.into_values().collect(), compare.into_values().collect());
        let summary = |side: &[Replicate], (hosts, instances): (usize, usize)| SideBasis {
            replicates: side.len(),
            hosts,
            instances,
            seconds: side.iter().map(Replicate::seconds).sum(),
            samples: side.iter().map(|it| it.all.samples).sum(),
        };
        let basis = Basis {
            replicate,
            paired,
            cost_per,
            base: summary(&base, counts[0]),
            compare: summary(&compare, counts[1]),
            needed: settings.min_replicates,
        };
        let exposures = |side: &[Replicate]| {
            let of = |it: &Replicate| match cost_per {
                CostPer::Request => it.requests(),
                CostPer::Second => it.seconds(),
                CostPer::Nothing => it.all.value,
            };
            side.iter().map(of).collect()
        };
        Self {
            base_exposure: exposures(&base),
            compare_exposure: exposures(&compare),
            base,
            compare,
            basis,
        }
    }

    fn is_enough(&self, settings: &Settings) -> bool {
        self.base.len().min(self.compare.len()) >= settings.min_replicates
    }

    /// Everything per second or request.
    fn whole(&self, settings: &Settings) -> Whole {
        let cost = self.cost(|replicate| replicate.all, settings);
        let changed_at_most = cost.ratio_interval.and_then(|interval| {
            let high = interval.high?;
            Some((1.0 - interval.low).abs().max((high - 1.0).abs()))
        });
        let is_significant = cost.p.is_some_and(|p| p <= settings.whole_alpha);
        let change = cost.ratio.map_or(f64::INFINITY, |ratio| ratio - 1.0);
        let verdict = match cost.p {
            None => Verdict::Untested,
            Some(_) if !is_significant => Verdict::Unchanged,
            Some(_) if change.abs() < settings.min_effect => Verdict::Small,
            Some(_) if change > 0.0 => Verdict::Regressed,
            Some(_) => Verdict::Improved,
        };
        Whole { cost, verdict, changed_at_most }
    }

    /// Tests the functions that have enough of both sides.
    fn test_functions(&self, settings: &Settings) -> Tested {
        let [base, compare] = [Pooled::new(&self.base), Pooled::new(&self.compare)];
        let all = base.all.value + compare.all.value;
        let is_enough = |sum: &Sum| {
            sum.samples >= settings.min_samples && 100.0 * sum.value >= settings.min_share_pp * all
        };
        let ids: BTreeSet<FunctionId> =
            base.functions.keys().chain(compare.functions.keys()).copied().collect();
        let (mut judged, mut pieces) = (Vec::new(), Vec::new());
        for id in &ids {
            let ((base_own, base_total), (own, total)) = (base.of(*id), compare.of(*id));
            let (of_own, of_total) = (base_own.plus(own), base_total.plus(total));
            if is_enough(&of_total) {
                judged.push(Judged {
                    id: *id,
                    own: self.metric(|replicate| replicate.own(*id), is_enough(&of_own), settings),
                    total: self.metric(|replicate| replicate.total(*id), true, settings),
                    is_leaf: of_own.value >= SAME_METRIC * of_total.value,
                });
            } else if 100.0 * of_total.value >= MIN_PIECE * settings.min_share_pp * all {
                pieces.push((
                    *id,
                    base_total.value / base.all.value,
                    total.value / compare.all.value,
                ));
            }
        }
        let untested = ids.len() - judged.len();
        Tested { judged, pieces, untested }
    }

    fn metric(
        &self,
        sum: impl Fn(&Replicate) -> Sum + Copy,
        test: bool,
        settings: &Settings,
    ) -> Metric {
        let observe = |side: &[Replicate]| -> Vec<Observation> {
            side.iter().map(|it| sum(it).per(it.all.value)).collect()
        };
        let share = self.change(observe(&self.base), observe(&self.compare), settings);
        let cost = self.cost(sum, settings);
        let verdict =
            if test && share.p.is_some() { Verdict::Unchanged } else { Verdict::Untested };
        Metric { share, cost, verdict }
    }

    fn cost(&self, sum: impl Fn(&Replicate) -> Sum, settings: &Settings) -> Change {
        let observe = |side: &[Replicate], exposure: &[f64]| -> Vec<Observation> {
            side.iter().zip(exposure).map(|(it, exposure)| sum(it).per(*exposure)).collect()
        };
        let base = observe(&self.base, &self.base_exposure);
        self.change(base, observe(&self.compare, &self.compare_exposure), settings)
    }

    fn change(
        &self,
        base: Vec<Observation>,
        compare: Vec<Observation>,
        settings: &Settings,
    ) -> Change {
        let pooled = |side: &[Observation]| {
            let (value, exposure) = side.iter().fold((0.0, 0.0), |(value, exposure), it| {
                (value + it.value, exposure + it.exposure)
            });
            if exposure > 0.0 { value / exposure } else { 0.0 }
        };
        let untested = Change::untested(pooled(&base), pooled(&compare));
        if !self.is_enough(settings) {
            return untested;
        }
        let means = if self.basis.paired {
            let pairs: Vec<_> = base.into_iter().zip(compare).collect();
            Means::paired(&pairs)
        } else {
            Means::unpaired(&base, &compare)
        };
        means.map_or(untested, |means| Change::new(means, settings.confidence))
    }
}

/// The sums of a side.
struct Pooled {
    all: Sum,
    functions: BTreeMap<FunctionId, (Sum, Sum)>,
}

impl Pooled {
    fn new(side: &[Replicate]) -> Self {
        let mut pooled = Self { all: Sum::default(), functions: BTreeMap::new() };
        for replicate in side {
            pooled.all += replicate.all;
            for (id, (own, total)) in replicate.functions() {
                let sums = pooled.functions.entry(id).or_default();
                sums.0 += *own;
                sums.1 += *total;
            }
        }
        pooled
    }

    fn of(&self, id: FunctionId) -> (Sum, Sum) {
        self.functions.get(&id).copied().unwrap_or_default()
    }
}

/// Those that say something: of what ran without being seen nothing can be said.
fn usable(replicates: BTreeMap<String, Replicate>) -> BTreeMap<String, Replicate> {
    replicates.into_iter().filter(|(_, it)| it.all.value > 0.0).collect()
}

fn cost_per(base: &Side, compare: &Side) -> CostPer {
    if base.has_requests() && compare.has_requests() {
        return CostPer::Request;
    }
    let has_seconds = |side: &Side| side.instances().values().all(|it| it.seconds() > 0.0);
    if has_seconds(base) && has_seconds(compare) { CostPer::Second } else { CostPer::Nothing }
}

/// Adjusts for how many hypotheses there are.
fn adjust(judged: &mut [Judged], settings: &Settings) {
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
        if metric.share.adjusted_p.is_some_and(|p| p <= settings.functions_q) {
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

/// Leaves of what differs what matters, and is not just displaced by others.
fn weigh(judged: &mut [Judged], centre: f64, settings: &Settings) {
    for metric in judged.iter_mut().flat_map(|it| [&mut it.own, &mut it.total]) {
        if !metric.verdict.is_alarm() {
            continue;
        }
        let share = &metric.share;
        let relative = share.ratio.map_or(f64::INFINITY, |ratio| ratio / centre - 1.0);
        let is_displaced = relative * share.difference <= 0.0
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

fn answer(whole: &Whole, judged: &[Judged]) -> Answer {
    let verdicts = || {
        judged.iter().flat_map(|it| [&it.own.verdict, &it.total.verdict]).chain([&whole.verdict])
    };
    if verdicts().any(|verdict| *verdict == Verdict::Regressed) {
        Answer::Regressed
    } else if verdicts().any(|verdict| *verdict == Verdict::Improved) {
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
