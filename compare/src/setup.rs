//! Replicates of both sides, put side by side, and the tests of each function and of everything.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    estimate::{Means, Observation},
    judge::{QUANTILES, Settings},
    latency::{LatencyChange, compare_quantile},
    report::{Basis, Change, CostPer, Metric, Replication, SideBasis, Verdict, Whole},
    sums::{FunctionId, Replicate, Side, Sum},
};

/// Into which functions one was split is looked for down to this part of the share that is tested.
const MIN_PIECE: f64 = 0.1;

/// Where a function calls nothing that matters, its two metrics are one.
const SAME_METRIC: f64 = 0.999;

/// A function on its way to a verdict.
pub(crate) struct Judged {
    pub(crate) id: FunctionId,
    pub(crate) own: Metric,
    pub(crate) total: Metric,
    /// Whether the two are the same hypothesis.
    pub(crate) is_leaf: bool,
}

/// All functions that were seen.
pub(crate) struct Tested {
    pub(crate) judged: Vec<Judged>,
    /// Functions that cost too little to be tested, but into which one may have been split. With their shares on both
    /// sides.
    pub(crate) pieces: Vec<(FunctionId, f64, f64)>,
    pub(crate) untested: usize,
}

/// Replicates of both sides, put side by side.
pub(crate) struct Setup {
    base: Vec<Replicate>,
    /// Of a paired comparison in the order of `base`.
    compare: Vec<Replicate>,
    /// Seconds or requests of each.
    base_exposure: Vec<f64>,
    compare_exposure: Vec<f64>,
    pub(crate) basis: Basis,
}

impl Setup {
    pub(crate) fn new(base: &Side, compare: &Side, settings: &Settings) -> Self {
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

    pub(crate) fn is_enough(&self, settings: &Settings) -> bool {
        self.base.len().min(self.compare.len()) >= settings.min_replicates
    }

    /// Everything per second or request.
    pub(crate) fn whole(&self, settings: &Settings) -> Whole {
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

    /// Compares quantiles of how long things took, if the profiles say.
    pub(crate) fn latencies(&self, settings: &Settings) -> Vec<LatencyChange> {
        let of =
            |side: &[Replicate]| side.iter().map(|it| it.latencies.clone()).collect::<Vec<_>>();
        let (base, compare) = (of(&self.base), of(&self.compare));
        let (base, compare): (Vec<_>, Vec<_>) = (base.iter().collect(), compare.iter().collect());
        let design = (self.basis.paired, settings.min_replicates, settings.confidence);
        let of_quantile = |quantile| {
            let wanted = (quantile, settings.latency_alpha, settings.min_effect);
            compare_quantile(&base, &compare, design, wanted)
        };
        QUANTILES.into_iter().filter_map(of_quantile).collect()
    }

    /// Tests the functions that have enough of both sides.
    pub(crate) fn test_functions(&self, settings: &Settings) -> Tested {
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
