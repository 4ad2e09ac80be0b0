//! What the collector counts, and `/metrics` in Prometheus' text format.
//!
//! Everything that is refused, deleted or waiting is counted here: nothing is lost
//! silently.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::{
    process::ProcessCollector,
    store::{Maintained, Room, Usage, ValidBatch},
};

/// What a sender was told about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchOutcome {
    Stored,
    Duplicate,
    Rejected,
    Retry,
    NoRoom,
}

impl BatchOutcome {
    fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Rejected => "rejected",
            Self::Retry => "retry",
            Self::NoRoom => "no_room",
        }
    }
}

/// Why a profile was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RejectReason {
    Kind,
    Labels,
    SampleTypes,
    TooLarge,
    Malformed,
}

impl RejectReason {
    fn name(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::Labels => "labels",
            Self::SampleTypes => "sample_types",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    route: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

/// All metrics of the collector.
pub struct Metrics {
    registry: Registry,
    batches: Family<OutcomeLabel, Counter>,
    rejected_profiles: Family<ReasonLabel, Counter>,
    stored_profiles: Counter,
    stored_samples: Counter,
    received_bytes: Counter,
    stored_bytes: Counter,
    clock_ahead: Counter,
    deploys_refused: Counter,
    queue_batches: Gauge,
    commit_seconds: Histogram,
    deleted_partitions: Family<CauseLabel, Counter>,
    deleted_bytes: Counter,
    reopened: Counter,
    disk_free_bytes: Gauge,
    data_bytes: Gauge,
    journal_bytes: Gauge,
    queries: Family<QueryLabels, Counter>,
    query_seconds: Family<RouteLabel, Histogram>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        let mut add = Registrar(registry.sub_registry_with_prefix("everflame_server"));
        let commit_buckets = || Histogram::new(exponential_buckets(0.000_5, 2.0, 15));
        let query_buckets: fn() -> Histogram =
            || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let metrics = Self {
            batches: add.metric(
                "batches",
                "Batches by what the sender was told",
                Family::default(),
            ),
            rejected_profiles: add.metric(
                "profiles_rejected",
                "Profiles refused, by reason",
                Family::default(),
            ),
            stored_profiles: add.metric(
                "profiles_stored",
                "Profiles made durable",
                Counter::default(),
            ),
            stored_samples: add.metric(
                "samples_stored",
                "Samples made durable",
                Counter::default(),
            ),
            received_bytes: add.bytes(
                "received",
                "Compressed profiles received",
                Counter::default(),
            ),
            stored_bytes: add.bytes(
                "stored",
                "Compressed profiles made durable",
                Counter::default(),
            ),
            clock_ahead: add.metric(
                "batches_clock_ahead",
                "Batches from the future, whose window was moved to the time of receipt",
                Counter::default(),
            ),
            deploys_refused: add.metric(
                "deploys_refused",
                "Windows and announcements of services whose deploys are not remembered, as there are too many",
                Counter::default(),
            ),
            queue_batches: add.metric(
                "queue_batches",
                "Batches that wait to be written",
                Gauge::default(),
            ),
            commit_seconds: add.seconds(
                "commit",
                "From queueing a batch to it being durable",
                commit_buckets(),
            ),
            deleted_partitions: add.metric(
                "partitions_deleted",
                "Hours of profiles deleted, by cause (age or disk budget)",
                Family::default(),
            ),
            deleted_bytes: add.bytes("deleted", "Profiles deleted", Counter::default()),
            reopened: add.metric(
                "store_reopened",
                "Times that the store was opened anew because a write had failed",
                Counter::default(),
            ),
            disk_free_bytes: add.bytes(
                "disk_free",
                "Free on the data directory's disk",
                Gauge::default(),
            ),
            data_bytes: add.bytes("data", "Profiles and indexes in the store", Gauge::default()),
            journal_bytes: add.bytes("journal", "Write-ahead log on disk", Gauge::default()),
            queries: add.metric("queries", "Queries by route and result", Family::default()),
            query_seconds: add.seconds(
                "query",
                "Time to answer a query, waiting for a slot included",
                Family::new_with_constructor(query_buckets),
            ),
            registry: Registry::default(),
        };
        Arc::new(Self { registry, ..metrics })
    }

    pub(crate) fn batch(&self, outcome: BatchOutcome) {
        self.batches.get_or_create(&OutcomeLabel { outcome: outcome.name() }).inc();
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.received_bytes.inc_by(bytes);
    }

    pub(crate) fn profile_rejected(&self, reason: RejectReason) {
        self.rejected_profiles.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
    }

    pub(crate) fn clock_ahead(&self) {
        self.clock_ahead.inc();
    }

    /// Mirrors how often deploys were not remembered, in all.
    pub(crate) fn deploys_refused(&self, refused: u64) {
        self.deploys_refused.inc_by(refused.saturating_sub(self.deploys_refused.get()));
    }

    pub(crate) fn queued(&self, change: i64) {
        self.queue_batches.inc_by(change);
    }

    pub(crate) fn stored(&self, batch: &ValidBatch) {
        self.stored_profiles.inc_by(batch.profiles.len() as u64);
        for profile in &batch.profiles {
            self.stored_samples.inc_by(profile.samples);
            self.stored_bytes.inc_by(profile.pprof_gz.len() as u64);
        }
    }

    pub(crate) fn committed(&self, latency: Duration) {
        self.commit_seconds.observe(latency.as_secs_f64());
    }

    pub(crate) fn maintained(&self, maintained: &Maintained) {
        for (cause, partitions) in
            [("age", maintained.expired_partitions), ("disk_budget", maintained.evicted_partitions)]
        {
            self.deleted_partitions.get_or_create(&CauseLabel { cause }).inc_by(partitions);
        }
        self.deleted_bytes.inc_by(maintained.deleted_bytes);
        self.reopened.inc_by(maintained.reopened);
    }

    pub(crate) fn disk(&self, usage: Usage, room: Room) {
        self.disk_free_bytes.set(signed(room.free_bytes));
        self.data_bytes.set(signed(usage.data_bytes));
        self.journal_bytes.set(signed(usage.journal_bytes));
    }

    pub(crate) fn query(&self, route: &'static str, result: &'static str, latency: Duration) {
        self.queries.get_or_create(&QueryLabels { route, result }).inc();
        self.query_seconds.get_or_create(&RouteLabel { route }).observe(latency.as_secs_f64());
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// When a metric cannot be formatted.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Registers a metric and keeps a handle to it.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn metric<M>(&mut self, name: &str, help: &str, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn bytes<M>(&mut self, name: &str, help: &str, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        self.0.register_with_unit(name, help, Unit::Bytes, metric.clone());
        metric
    }

    fn seconds<M>(&mut self, name: &str, help: &str, metric: M) -> M
    where
        M: prometheus_client::registry::Metric + Clone,
    {
        self.0.register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_what_was_counted() {
        let metrics = Metrics::new();
        metrics.batch(BatchOutcome::Duplicate);
        metrics.profile_rejected(RejectReason::TooLarge);
        metrics.committed(Duration::from_millis(3));
        let text = metrics.encode().unwrap();
        for line in [
            "everflame_server_batches_total{outcome=\"duplicate\"} 1",
            "everflame_server_profiles_rejected_total{reason=\"too_large\"} 1",
            "everflame_server_commit_seconds_count 1",
            "everflame_server_received_bytes_total 0",
            "process_resident_memory_bytes ",
        ] {
            let found = text.lines().any(|found| found.starts_with(line));
            assert!(found, "{line} is missing from\n{text}");
        }
    }
}
