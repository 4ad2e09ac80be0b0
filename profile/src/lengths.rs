//! How long things took, counted in powers of two.

use std::collections::BTreeMap;

/// How many took how long. Each bucket begins at a power of two of nanoseconds, or at 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lengths(BTreeMap<i64, Bucket>);

/// What took at least as long as a power of two, and less than the next one.
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

    /// The mean length in that bucket in which the given percentage of all is reached; of the last one its
    /// upper bound is not known to be reached, so it is a mean, too.
    pub(crate) fn quantile(&self, percent: i64) -> i64 {
        let total = self.0.values().fold(0_i64, |sum, bucket| sum.saturating_add(bucket.count));
        let wanted = i128::from(total) * i128::from(percent);
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
