//! Kind `tcp`, against what clients, servers and the kernel count and measure themselves. Each test has a network of
//! its own.

mod counts;
mod earlier;
mod failures;
mod labels;
mod latencies;
mod patterns;
mod retransmits;
mod rtt;
mod workload;

use std::collections::BTreeMap;

use everflame_tests::net::End;
use everflame_tests::profile::Sample;
use everflame_tests::tcp::Latencies;

use crate::say;

/// How far off medians may be.
const MILLISECOND_NS: f64 = 1e6;

/// The indices of values.
const EVENTS: usize = 0;
const LATENCY: usize = 1;

/// Samples that have something in common.
#[derive(Clone)]
struct Chosen<'a>(Vec<&'a Sample>);

impl<'a> Chosen<'a> {
    /// Those of something that happened in the network namespace of one end.
    fn of(samples: &'a [Sample], event: &str, end: &End) -> Self {
        let all = Self(samples.iter().collect());
        all.with("event", event).with("netns", end.namespace.inode())
    }

    /// Those that have this label.
    fn with(&self, label: &str, value: impl ToString) -> Self {
        let value = value.to_string();
        Self(self.0.iter().copied().filter(|sample| sample.label(label) == value).collect())
    }

    /// Those with this function on the stack.
    fn calling(&self, function: &str) -> Self {
        Self(self.0.iter().copied().filter(|sample| sample.has(function)).collect())
    }

    fn sum(&self, value: usize) -> u64 {
        let sum: i64 = self.0.iter().map(|sample| sample.values[value]).sum();
        u64::try_from(sum).unwrap()
    }

    /// How many events.
    fn events(&self) -> u64 {
        self.sum(EVENTS)
    }

    /// Their mean latency.
    fn mean_ns(&self) -> f64 {
        self.sum(LATENCY) as f64 / self.events() as f64
    }

    /// Their median latency: the mean of what the median is counted in.
    fn median_ns(&self) -> f64 {
        let mut buckets = BTreeMap::<u64, (i64, i64)>::new();
        for sample in &self.0 {
            let bucket = buckets.entry(sample.label("latency").parse().unwrap()).or_default();
            bucket.0 += sample.values[EVENTS];
            bucket.1 += sample.values[LATENCY];
        }
        let events: i64 = buckets.values().map(|(events, _)| events).sum();
        let mut before = 0;
        let median = buckets.values().find(|(events_of_bucket, _)| {
            before += events_of_bucket;
            2 * before > events
        });
        let (events, ns) = median.unwrap();
        *ns as f64 / *events as f64
    }

    /// Events by the values of a label.
    fn by(&self, label: &str) -> BTreeMap<&'a str, u64> {
        let mut events = BTreeMap::new();
        for sample in &self.0 {
            *events.entry(sample.label(label)).or_default() +=
                u64::try_from(sample.values[EVENTS]).unwrap();
        }
        events
    }

    /// All of them are calls of this function.
    fn assert_called_by(&self, function: &str) {
        let (all, calls) = (self.events(), self.calling(function).events());
        say(&format!("{calls} of {all} are calls of {function}"));
        let others = self.0.iter().filter(|sample| !sample.has(function));
        let other = others.max_by_key(|sample| sample.values[EVENTS]);
        assert!(all > 0 && calls as f64 >= 0.99 * all as f64, "others: {other:?}");
    }

    /// As many as a program has counted, and as long as it has measured.
    fn assert_agrees(&self, what: &str, truth: Latencies) {
        self.assert_count(what, truth.count);
        self.assert_median(what, truth);
    }

    fn assert_count(&self, what: &str, truth: u64) {
        say(&format!("{what}: {} seen, {truth} in truth", self.events()));
        assert_eq!(self.events(), truth, "{what}");
    }

    fn assert_median(&self, what: &str, truth: Latencies) {
        let (seen, truth) = (self.median_ns(), truth.median_ns as f64);
        say(&format!("{what}: median {seen:.0} ns seen, {truth} ns in truth"));
        assert!((seen - truth).abs() <= MILLISECOND_NS, "{what}");
    }
}
