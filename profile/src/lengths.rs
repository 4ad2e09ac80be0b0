//! How long things took, counted in buckets: profiles say of each sample in which one it is.

use std::collections::BTreeMap;

use serde::Serialize;

/// How long things took, in nanoseconds, to within the buckets that the profile counts them in:
/// powers of two, of kind `tcp` quarters of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// All together.
    pub total_ns: i64,
    /// Half of them did not take longer.
    pub p50_ns: i64,
    /// 90 in 100 did not.
    pub p90_ns: i64,
    /// 99 in 100 did not.
    pub p99_ns: i64,
    /// About as long as the longest.
    pub max_ns: i64,
}

/// How many took how long. The end of a bucket is the begin of the next one, of which only the
/// profile's writer has to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lengths(BTreeMap<i64, Bucket>);

/// What took at least as long as where the bucket begins, and less than where the next one does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    ns: i64,
    count: i64,
}

impl Bucket {
    fn add(&mut self, other: Self) {
        self.ns = self.ns.saturating_add(other.ns);
        self.count = self.count.saturating_add(other.count);
    }
}

impl Lengths {
    /// Adds `count` of those that begin at `from_ns`, which took `ns` together.
    pub(crate) fn add(&mut self, from_ns: i64, ns: i64, count: i64) {
        self.0.entry(from_ns).or_default().add(Bucket { ns, count });
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: Self) {
        for (from_ns, bucket) in other.0 {
            self.0.entry(from_ns).or_default().add(bucket);
        }
    }

    /// (begin of the bucket in nanoseconds, how many) of those that are not empty, shortest first.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (i64, i64)> {
        self.0.iter().map(|(from_ns, bucket)| (*from_ns, bucket.count))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> i64 {
        self.0.values().fold(0, |sum, bucket| sum.saturating_add(bucket.count))
    }

    /// What they took together.
    pub(crate) fn total_ns(&self) -> i64 {
        self.0.values().fold(0, |sum, bucket| sum.saturating_add(bucket.ns))
    }

    pub(crate) fn latency(&self) -> Latency {
        Latency {
            total_ns: self.total_ns(),
            p50_ns: self.quantile(50),
            p90_ns: self.quantile(90),
            p99_ns: self.quantile(99),
            max_ns: self.quantile(100),
        }
    }

    /// The mean length in that bucket in which the given percentage of all is reached; of the last one its
    /// upper bound is not known to be reached, so it is a mean, too.
    pub(crate) fn quantile(&self, percent: i64) -> i64 {
        let wanted = i128::from(self.count()) * i128::from(percent);
        let mut before = 0_i128;
        let mut length = 0;
        for bucket in self.0.values().filter(|bucket| bucket.count > 0) {
            length = bucket.ns / bucket.count;
            before += i128::from(bucket.count) * 100;
            if before >= wanted {
                break;
            }
        }
        length
    }
}
