//! Fleets whose truth is known: what hosts differ by, and what a deploy has changed.
//!
//! Each host runs a program of some functions whose shares follow Zipf's law. A host has each function's cost, and
//! its load, by factors of its own (lognormal); they persist when the same host runs the other version. Within a
//! host costs vary by 2 % from one side to the other. What is seen of it are samples (Poisson), 19 a second of a
//! busy core.

use everflame_compare::{
    Caller, FunctionId, FunctionSum, Functions, Report, Settings, Side, Sum, Window, compare,
};

/// Samples that a busy core gives in an hour.
const SAMPLES_AN_HOUR: f64 = 19.0 * 3600.0;

/// By how much costs vary within a host.
const WITHIN_HOST: f64 = 0.02;

/// Nanoseconds of a sample.
const PERIOD_NS: f64 = 1e9 / 19.0;

/// The function whose share is chosen; the others follow Zipf's law.
pub(crate) const CHOSEN: FunctionId = 1;

/// A fleet, and how long it is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fleet {
    /// Hosts on each side.
    pub(crate) hosts: usize,
    /// Whether the same hosts run both versions.
    pub(crate) same_hosts: bool,
    /// From host to host, as a share.
    pub(crate) variation: f64,
    pub(crate) hours: f64,
    pub(crate) functions: usize,
    /// The share of [`CHOSEN`].
    pub(crate) share: f64,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            hosts: 20,
            same_hosts: false,
            variation: 0.1,
            hours: 1.0,
            functions: 1_000,
            share: 0.01,
        }
    }
}

/// What the second version does otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Change {
    Nothing,
    /// [`CHOSEN`] costs so many times what it did.
    Factor(f64),
    /// [`CHOSEN`] is called so no more: that share of it is in one new function, the rest in another.
    Split(f64),
}

/// A comparison, with the counts that it was made from: of each side for each function by host.
pub(crate) struct Comparison {
    pub(crate) report: Report,
    pub(crate) counts: [Vec<Vec<f64>>; 2],
}

/// A standard normal deviate (Box and Muller).
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

/// A factor with mean 1 and this coefficient of variation.
fn factor(rng: &mut fastrand::Rng, variation: f64) -> f64 {
    let sigma_2 = variation.mul_add(variation, 1.0).ln();
    (sigma_2.sqrt() * normal(rng) - sigma_2 / 2.0).exp()
}

fn poisson(rng: &mut fastrand::Rng, mean: f64) -> f64 {
    if mean > 50.0 {
        return (mean + mean.sqrt() * normal(rng)).round().max(0.0);
    }
    let (limit, mut product, mut count) = ((-mean).exp(), rng.f64(), 0.0);
    while product > limit {
        product *= rng.f64();
        count += 1.0;
    }
    count
}

/// What a host has of its own.
struct Host {
    load: f64,
    costs: Vec<f64>,
}

impl Fleet {
    fn host(&self, rng: &mut fastrand::Rng) -> Host {
        let load = factor(rng, self.variation);
        Host { load, costs: (0..self.functions).map(|_| factor(rng, self.variation)).collect() }
    }

    /// What each function costs of a core, all together 1.
    fn costs(&self) -> Vec<f64> {
        let chosen = usize::try_from(CHOSEN).unwrap() - 1;
        let mut costs: Vec<f64> = (1..=self.functions).map(|rank| 1.0 / rank as f64).collect();
        costs[chosen] = 0.0;
        let sum: f64 = costs.iter().sum();
        for cost in &mut costs {
            *cost *= (1.0 - self.share) / sum;
        }
        costs[chosen] = self.share;
        costs
    }

    /// Samples of each function: those of `costs`, and two more into which [`CHOSEN`] may be split.
    fn samples(&self, host: &Host, change: Change, rng: &mut fastrand::Rng) -> Vec<f64> {
        let chosen = usize::try_from(CHOSEN).unwrap() - 1;
        let mut means: Vec<f64> = self
            .costs()
            .iter()
            .zip(&host.costs)
            .map(|(cost, of_host)| cost * of_host * factor(rng, WITHIN_HOST))
            .collect();
        let pieces = match change {
            Change::Nothing => [0.0; 2],
            Change::Factor(times) => {
                means[chosen] *= times;
                [0.0; 2]
            }
            Change::Split(first) => {
                let cost = std::mem::take(&mut means[chosen]);
                [cost * first, cost * (1.0 - first)]
            }
        };
        means.extend(pieces);
        let seen = SAMPLES_AN_HOUR * self.hours * host.load * factor(rng, WITHIN_HOST);
        means.into_iter().map(|mean| poisson(rng, seen * mean)).collect()
    }

    /// Watches both versions and compares them.
    pub(crate) fn compare(&self, change: Change, rng: &mut fastrand::Rng) -> Comparison {
        let mut functions = Functions::default();
        let root = functions.intern("main", "main.rs");
        let ids: Vec<FunctionId> = (1..=self.functions + 2)
            .map(|number| functions.intern(&format!("{} of app", letters(number)), "app.rs"))
            .collect();
        let mut sides = [Side::default(), Side::default()];
        let mut counts = [Vec::new(), Vec::new()];
        let mut hosts: Vec<Host> = Vec::new();
        for (number, (side, counts)) in sides.iter_mut().zip(&mut counts).enumerate() {
            for at in 0..self.hosts {
                if number == 0 || !self.same_hosts {
                    hosts.push(self.host(rng));
                }
                let host = if self.same_hosts { &hosts[at] } else { hosts.last().unwrap() };
                let change = if number == 0 { Change::Nothing } else { change };
                let samples = self.samples(host, change, rng);
                let name = format!("{}-{at}", if self.same_hosts { 0 } else { number });
                add(side, &name, self.hours, root, &ids, &samples);
                counts.push(samples);
            }
        }
        let [base, other] = &sides;
        Comparison { report: compare(&functions, base, other, &Settings::default()), counts }
    }
}

/// A name without digits, as those at the end of names may be left out.
fn letters(mut number: usize) -> String {
    let mut name = String::new();
    while number > 0 {
        name.push(char::from(b'a' + u8::try_from(number % 26).unwrap()));
        number /= 26;
    }
    name
}

/// The name of [`CHOSEN`].
pub(crate) fn chosen() -> String {
    format!("{} of app", letters(usize::try_from(CHOSEN).unwrap()))
}

fn add(
    side: &mut Side,
    host: &str,
    hours: f64,
    root: FunctionId,
    ids: &[FunctionId],
    samples: &[f64],
) {
    let sum = |samples: f64| Sum { value: samples * PERIOD_NS, samples };
    let all = sum(samples.iter().sum());
    let mut sums = vec![(root, FunctionSum { total: all, ..FunctionSum::default() })];
    for (id, samples) in ids.iter().zip(samples).filter(|(_, samples)| **samples > 0.0) {
        let caller = Caller { function: Some(root), lead: *samples };
        sums.push((*id, FunctionSum { own: sum(*samples), total: sum(*samples), caller }));
    }
    let duration_ns = (hours * 3600e9) as u64;
    side.add(&Window {
        host,
        instance: "app",
        start_unix_ns: 0,
        duration_ns,
        all,
        functions: &sums,
    });
}

/// Whether anything is said to have changed.
pub(crate) fn alarms(report: &Report) -> bool {
    let verdicts =
        report.functions.iter().flat_map(|it| it.metrics().map(|metric| &metric.verdict));
    verdicts.chain([&report.whole.verdict]).any(|verdict| verdict.is_alarm())
}
