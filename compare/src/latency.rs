//! How long things took, counted in buckets, and how the quantiles of two sides differ.
//!
//! A quantile is taken of each replicate and compared by its logarithm, whose differences are ratios; a replicate
//! counts once, however much it did.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::estimate::{Interval, Means, Observation};

/// Counts by bucket. Buckets begin at powers of two, and three between each and the next at equal distances; below
/// four each number is one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latencies(BTreeMap<u64, f64>);

/// A quantile on both sides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LatencyChange {
    /// Which: 0.5, 0.99.
    pub quantile: f64,
    /// Of the base: the geometric mean of its replicates, in nanoseconds.
    pub base: f64,
    /// Of the other side.
    pub compare: f64,
    /// What the other side has for each of the base.
    pub ratio: f64,
    /// Where the ratio is believed to be, at 95 %.
    pub ratio_interval: Interval,
    /// The probability of as large a difference where there is none.
    pub p: f64,
    /// Whether it is longer, or shorter, and that is neither chance nor too little to matter.
    pub changed: bool,
}

impl Latencies {
    /// So many more took at least `from`, and less than the next bucket.
    pub fn add(&mut self, from: u64, count: f64) {
        *self.0.entry(from).or_default() += count;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> f64 {
        self.0.values().sum()
    }

    pub(crate) fn join(&mut self, other: &Self) {
        for (from, count) in &other.0 {
            self.add(*from, *count);
        }
    }

    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// The length that this share of all does not exceed, as if those of a bucket were spread evenly.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        let wanted = quantile * self.count();
        let mut below = 0.0;
        for (from, count) in &self.0 {
            if below + count >= wanted && *count > 0.0 {
                let into = ((wanted - below) / count).clamp(0.0, 1.0);
                return Some(*from as f64 + into * width(*from) as f64);
            }
            below += count;
        }
        None
    }
}

/// How wide the bucket is that begins here.
fn width(from: u64) -> u64 {
    (from.checked_ilog2().map_or(1, |power| 1_u64 << power) / 4).max(1)
}

/// Of replicates that have too few nothing is said.
const MIN_COUNT: f64 = 20.0;

/// Compares a quantile; replicates are in the same order on both sides if they are paired. Differences that may be
/// chance in more than `alpha`, or are below `min_effect`, are no change.
pub(crate) fn compare_quantile(
    base: &[&Latencies],
    compare: &[&Latencies],
    (is_paired, min_replicates, confidence): (bool, usize, f64),
    (quantile, alpha, min_effect): (f64, f64, f64),
) -> Option<LatencyChange> {
    let of = |latencies: &&Latencies| {
        let is_enough = latencies.count() >= MIN_COUNT;
        let value = latencies.quantile(quantile).filter(|value| is_enough && *value > 0.0)?.ln();
        Some(Observation { value, exposure: 1.0, samples: 0.0 })
    };
    let means = if is_paired {
        let pairs =
            base.iter().zip(compare).filter_map(|(base, compare)| Some((of(base)?, of(compare)?)));
        let pairs: Vec<_> = pairs.collect();
        (pairs.len() >= min_replicates).then(|| Means::paired(&pairs))??
    } else {
        let (base, compare): (Vec<_>, Vec<_>) =
            (base.iter().filter_map(of).collect(), compare.iter().filter_map(of).collect());
        (base.len().min(compare.len()) >= min_replicates)
            .then(|| Means::unpaired(&base, &compare))??
    };
    let (p, difference) = (means.test(1.0).p, means.difference_interval(confidence));
    let ratio = means.difference().exp();
    Some(LatencyChange {
        quantile,
        base: means.base.exp(),
        compare: means.compare.exp(),
        ratio,
        ratio_interval: Interval { low: difference.low.exp(), high: difference.high.map(f64::exp) },
        p,
        changed: p <= alpha && (ratio - 1.0).abs() >= min_effect,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(buckets: &[(u64, f64)]) -> Latencies {
        let mut latencies = Latencies::default();
        buckets.iter().for_each(|(from, count)| latencies.add(*from, *count));
        latencies
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let latencies = latencies(&[(1024, 50.0), (2048, 49.0), (65_536, 1.0)]);
        assert_eq!(latencies.quantile(0.25), Some(1024.0 + 128.0));
        assert_eq!(latencies.quantile(0.5), Some(1024.0 + 256.0));
        assert_eq!(latencies.quantile(0.99), Some(2048.0 + 512.0));
        assert_eq!(latencies.quantile(1.0), Some(65_536.0 + 16_384.0));
        assert_eq!(Latencies::default().quantile(0.5), None);
    }

    #[test]
    fn longer_tail_is_seen_where_the_median_is_the_same() {
        let of =
            |host: u64, tail: u64| latencies(&[(1000 + host, 900.0), (tail * (100 + host), 100.0)]);
        let base: Vec<_> = (0..6).map(|host| of(host, 100)).collect();
        let other: Vec<_> = (0..6).map(|host| of(5 - host, 200)).collect();
        let compare = |quantile| {
            let (base, other): (Vec<_>, Vec<_>) = (base.iter().collect(), other.iter().collect());
            compare_quantile(&base, &other, (false, 5, 0.95), (quantile, 0.005, 0.05)).unwrap()
        };
        assert!(!compare(0.5).changed, "{:?}", compare(0.5));
        let tail = compare(0.99);
        assert!(tail.changed && (tail.ratio - 2.0).abs() < 0.1, "{tail:?}");
    }

    #[test]
    fn few_events_say_nothing() {
        let few = latencies(&[(1000, 19.0)]);
        let hosts = vec![&few; 6];
        assert!(compare_quantile(&hosts, &hosts, (true, 5, 0.95), (0.5, 0.005, 0.05)).is_none());
    }
}
