//! Answers questions about stored profiles.
//!
//! Everything here runs on blocking threads, a bounded number at a time, and every
//! query has a limit on how many profiles it merges, how much memory their sum takes
//! and how long it takes: one careless question must not keep the collector from
//! taking batches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use everflame_profile::{
    DecodeLimits, DiffTable, FlameTree, Kind, Merger, TopTable, block, decode, diff, encode_gz,
    flame, pprof, sample_type_index, tcp, top,
};
use tokio::{sync::Semaphore, task, time::timeout};

use super::error::QueryError;
use crate::{
    ingest::labels::HOST,
    metrics::Metrics,
    store::{Filter, SeriesExtent, SeriesKey, Store, StoredProfile, TimeRange},
};

/// What was stored has been checked; these only catch damage.
pub(super) const STORED_LIMITS: DecodeLimits =
    DecodeLimits { max_compressed_bytes: usize::MAX, max_decompressed_bytes: 1 << 30 };

/// Labels, and values of them that profiles have which are in no sum, unless somebody asks for that label.
const IN_NO_SUM: [(&str, &[&str]); 2] = [
    // What a process had grown by when the kernel ended it: the sum of what is in those of its windows.
    ("oom", &["true"]),
    // How long it took to make files durable (kind `block`): mostly requests to a disk, which have their own.
    // Round-trip times (kind `tcp`): what the network is like, which nobody has waited for.
    ("event", &[block::Event::Sync.name(), tcp::Event::Rtt.name()]),
];

/// What a query may cost.
#[derive(Debug, Clone, Copy)]
pub struct QueryLimits {
    /// Profiles merged by one query.
    pub max_profiles: u64,
    /// Memory that the sum of them may take; a diff has two.
    pub max_merged_bytes: usize,
    /// Series listed by one query.
    pub max_series: usize,
    /// How long a query may run, and how long it may wait for others.
    pub timeout: Duration,
    /// Queries that run at the same time.
    pub max_concurrent: usize,
}

/// What a query is about.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Which profiles.
    pub filter: Filter,
    /// Which of their values; `None` for the usual one.
    pub sample_type: Option<String>,
}

/// Answers queries; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    store: Arc<dyn Store>,
    limits: QueryLimits,
    slots: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Engine {
    /// An engine on a store.
    pub fn new(store: Arc<dyn Store>, limits: QueryLimits, metrics: Arc<Metrics>) -> Self {
        let slots = Arc::new(Semaphore::new(limits.max_concurrent.max(1)));
        Self { store, limits, slots, metrics }
    }

    /// The kinds that have profiles in the range.
    ///
    /// # Errors
    /// See [`QueryError`]; so for all others.
    pub async fn kinds(&self, range: TimeRange) -> Result<Vec<Kind>, QueryError> {
        self.run("kinds", move |run| Ok(run.store.kinds(range)?)).await
    }

    /// The label names of matching series, sorted.
    pub async fn label_names(&self, filter: Filter) -> Result<Vec<String>, QueryError> {
        self.run("labels", move |run| {
            let mut names = BTreeSet::new();
            run.series(&filter, |extent| {
                for (name, _) in &extent.series.labels {
                    if !names.contains(name) {
                        names.insert(name.clone());
                    }
                }
                names.len()
            })?;
            Ok(names.into_iter().collect())
        })
        .await
    }

    /// The values that a label has in matching series, sorted; not "".
    pub async fn label_values(
        &self,
        filter: Filter,
        name: String,
    ) -> Result<Vec<String>, QueryError> {
        self.run("label_values", move |run| {
            let mut values = BTreeSet::new();
            run.series(&filter, |extent| {
                let value = extent.series.label(&name);
                if !value.is_empty() && !values.contains(value) {
                    values.insert(value.to_owned());
                }
                values.len()
            })?;
            Ok(values.into_iter().collect())
        })
        .await
    }

    /// The matching series, sorted by labels.
    pub async fn series(&self, filter: Filter) -> Result<Vec<SeriesExtent>, QueryError> {
        self.run("series", move |run| {
            let mut found: BTreeMap<Vec<(String, String)>, SeriesExtent> = BTreeMap::new();
            run.series(&filter, |extent| {
                match found.get_mut(&extent.series.labels) {
                    Some(known) => {
                        known.first_unix_ns = known.first_unix_ns.min(extent.first_unix_ns);
                        known.last_unix_ns = known.last_unix_ns.max(extent.last_unix_ns);
                        known.profiles += extent.profiles;
                    }
                    None => {
                        found.insert(extent.series.labels.clone(), extent);
                    }
                }
                found.len()
            })?;
            Ok(found.into_values().collect())
        })
        .await
    }

    /// The sum of the matching profiles, as gzip'd pprof.
    pub async fn merge_pprof(&self, selection: Selection) -> Result<Vec<u8>, QueryError> {
        self.run("merge_pprof", move |run| Ok(encode_gz(&run.merge(&selection)?.profile))).await
    }

    /// The sum of the matching profiles, as a tree.
    pub async fn merge_flame(&self, selection: Selection) -> Result<FlameTree, QueryError> {
        self.run("merge_flame", move |run| {
            let merged = run.merge(&selection)?;
            Ok(flame(&merged.profile, merged.sample_type_index(&selection)?))
        })
        .await
    }

    /// The functions of the matching profiles, at most `limit` of them (0: all).
    pub async fn top(&self, selection: Selection, limit: usize) -> Result<TopTable, QueryError> {
        self.run("top", move |run| {
            let merged = run.merge(&selection)?;
            let mut table = top(&merged.profile, merged.sample_type_index(&selection)?);
            if limit > 0 {
                table.functions.truncate(limit);
            }
            Ok(table)
        })
        .await
    }

    /// What differs between two selections, at most `limit` functions (0: all).
    pub async fn diff(
        &self,
        base: Selection,
        compare: Selection,
        limit: usize,
    ) -> Result<DiffTable, QueryError> {
        self.run("diff", move |run| {
            if base.filter.kind != compare.filter.kind {
                let (base, compare) = (base.filter.kind, compare.filter.kind);
                return Err(QueryError::DifferentKinds { base, compare });
            }
            let base_side = run.merge(&base)?;
            let compare_side = run.merge(&compare)?;
            let sample_type = compare.sample_type.as_deref().or(base.sample_type.as_deref());
            let mut table = diff(&base_side.profile, &compare_side.profile, sample_type)?;
            table.base_seconds = base_side.seconds;
            table.compare_seconds = compare_side.seconds;
            if limit > 0 {
                table.functions.truncate(limit);
            }
            Ok(table)
        })
        .await
    }

    /// Runs a query on a blocking thread when it is its turn.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        route: &'static str,
        query: impl FnOnce(&Run) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let begin = Instant::now();
        let result = self.run_unmeasured(query).await;
        let outcome = result.as_ref().map_or_else(QueryError::code, |_| "ok");
        self.metrics.query(route, outcome, begin.elapsed());
        result
    }

    async fn run_unmeasured<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Run) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, QueryError> {
        let waiting = timeout(self.limits.timeout, Arc::clone(&self.slots).acquire_owned());
        let Ok(Ok(slot)) = waiting.await else {
            return Err(QueryError::Overloaded { max_concurrent: self.limits.max_concurrent });
        };
        let run = Run {
            store: Arc::clone(&self.store),
            limits: self.limits,
            deadline: Instant::now() + self.limits.timeout,
        };
        let done = task::spawn_blocking(move || {
            // Released when the work ends, not when the client goes away.
            let _slot = slot;
            query(&run)
        });
        done.await.map_err(|source| QueryError::Crashed { source })?
    }
}

/// One query while it runs.
pub(super) struct Run {
    pub(super) store: Arc<dyn Store>,
    limits: QueryLimits,
    deadline: Instant,
}

/// The sum of some profiles.
struct Merged {
    profile: pprof::Profile,
    /// Seconds of profile, each window of each host counted once.
    seconds: f64,
}

impl Merged {
    fn sample_type_index(&self, selection: &Selection) -> Result<usize, QueryError> {
        Ok(sample_type_index(&self.profile, selection.sample_type.as_deref())?)
    }
}

impl Run {
    /// Whether so many profiles may be read, and there is time for another one.
    pub(super) fn check_profiles(&self, profiles: u64) -> Result<(), QueryError> {
        if profiles > self.limits.max_profiles {
            return Err(QueryError::TooManyProfiles { limit: self.limits.max_profiles });
        }
        if Instant::now() > self.deadline {
            return Err(QueryError::Timeout { after: self.limits.timeout });
        }
        Ok(())
    }

    /// Whether their sum may take so much memory.
    pub(super) fn check_bytes(&self, bytes: usize) -> Result<(), QueryError> {
        if bytes > self.limits.max_merged_bytes {
            return Err(QueryError::TooLarge { limit_bytes: self.limits.max_merged_bytes });
        }
        Ok(())
    }

    /// Shows `take` all matching series. It returns how much it has kept of them,
    /// which is what is limited.
    fn series(
        &self,
        filter: &Filter,
        mut take: impl FnMut(SeriesExtent) -> usize,
    ) -> Result<(), QueryError> {
        let mut stopped = None;
        self.store.visit_series(filter, &mut |extent| {
            if take(extent) > self.limits.max_series {
                stopped = Some(QueryError::TooManySeries { limit: self.limits.max_series });
            } else if Instant::now() > self.deadline {
                stopped = Some(QueryError::Timeout { after: self.limits.timeout });
            }
            if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        stopped.map_or(Ok(()), Err)
    }

    fn merge(&self, selection: &Selection) -> Result<Merged, QueryError> {
        let mut merge =
            Merge { run: self, merger: Merger::new(), profiles: 0, windows: Windows::default() };
        let mut stopped = None;
        let filter = summed(selection.filter.clone());
        self.store.visit_profiles(&filter, &mut |profile| match merge.add(&profile) {
            Ok(()) => ControlFlow::Continue(()),
            Err(err) => {
                stopped = Some(err);
                ControlFlow::Break(())
            }
        })?;
        if let Some(err) = stopped {
            return Err(err);
        }
        if merge.profiles == 0 {
            return Err(QueryError::NoData { kind: selection.filter.kind });
        }
        let seconds = merge.windows.seconds();
        let mut profile = merge.merger.finish();
        // The profiles of a window's processes are of the same seconds; as a sum of
        // them "samples / duration" would say that a busy host is idle.
        profile.duration_nanos = (seconds * 1e9) as i64;
        Ok(Merged { profile, seconds })
    }
}

/// Without the profiles that are in no sum.
pub(super) fn summed(mut filter: Filter) -> Filter {
    for (name, values) in IN_NO_SUM {
        filter.selector.leave_out(name, values);
    }
    filter
}

struct Merge<'a> {
    run: &'a Run,
    merger: Merger,
    profiles: u64,
    windows: Windows,
}

impl Merge<'_> {
    fn add(&mut self, stored: &StoredProfile<'_>) -> Result<(), QueryError> {
        self.profiles += 1;
        self.run.check_profiles(self.profiles)?;
        let profile = decode(stored.pprof_gz, &STORED_LIMITS)
            .map_err(|source| QueryError::Damaged { source })?;
        self.merger.add(&profile)?;
        self.run.check_bytes(self.merger.bytes())?;
        self.windows.add(stored.series, stored.start_unix_ns, stored.duration_ns);
        Ok(())
    }
}

/// The distinct windows of each host: one window has a profile per process, but
/// lasts only once.
#[derive(Default)]
struct Windows {
    of_host: HashMap<String, HashSet<(u64, u64)>>,
}

impl Windows {
    fn add(&mut self, series: &SeriesKey, start_unix_ns: u64, duration_ns: u64) {
        let host = series.label(HOST);
        let window = (start_unix_ns, duration_ns);
        match self.of_host.get_mut(host) {
            Some(windows) => {
                windows.insert(window);
            }
            None => {
                self.of_host.insert(host.to_owned(), HashSet::from([window]));
            }
        }
    }

    fn seconds(&self) -> f64 {
        let durations = self.of_host.values().flatten().map(|(_, duration_ns)| *duration_ns);
        durations.map(|duration_ns| Duration::from_nanos(duration_ns).as_secs_f64()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(host: &str, pid: &str) -> SeriesKey {
        let labels = vec![("host".to_owned(), host.to_owned()), ("pid".to_owned(), pid.to_owned())];
        SeriesKey { kind: Kind::Cpu, labels }
    }

    #[test]
    fn events_that_are_in_no_sum_can_be_asked_for() {
        let check = |kind, event: &str, selector: &str, expected| {
            let labels = [("event", event), ("pid", "1")];
            let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            let range = TimeRange { start_unix_ns: 0, end_unix_ns: u64::MAX };
            let filter = summed(Filter { kind, selector: selector.parse().unwrap(), range });
            let is_in = filter.selector.matches(&SeriesKey { kind, labels });
            assert_eq!(is_in, expected, "{event} of {kind}, {:?}", filter.selector);
        };
        for (kind, event) in [(Kind::Block, "sync"), (Kind::Tcp, "rtt")] {
            check(kind, "request", "", true);
            check(kind, event, "", false);
            check(kind, event, r#"{pid="1"}"#, false);
            check(kind, event, r#"{event=~".*"}"#, true);
            check(kind, event, &format!("{{event={event:?}}}"), true);
            check(kind, "request", &format!("{{event={event:?}}}"), false);
        }
    }

    #[test]
    fn seconds_count_each_window_of_each_host_once() {
        const TEN_SECONDS: u64 = 10_000_000_000;
        let mut windows = Windows::default();
        for (host, pid, start) in
            [("a", "1", 0), ("a", "2", 0), ("a", "1", TEN_SECONDS), ("b", "1", 0)]
        {
            windows.add(&series(host, pid), start, TEN_SECONDS);
        }
        assert!((windows.seconds() - 30.0).abs() < 1e-9);
    }
}
