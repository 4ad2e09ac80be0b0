//! Reading: which series match, and what they have in a time range.
//!
//! Label values that a selector requires are looked up in the index; the labels of
//! the remaining candidates are then read and checked against the whole selector,
//! so the index only has to be complete, not clever.

use std::{collections::HashSet, ops::ControlFlow, sync::Arc};

use everflame_profile::Kind;
use fjall::Slice;

use super::{
    EmbeddedStore, Open,
    keys::{self, ProfileKey, SeriesId},
    partition::Partition,
};
use crate::{
    query::selector::Selector,
    store::{Filter, SeriesExtent, SeriesKey, StoreError, StoredProfile, TimeRange},
};

pub(super) fn kinds(store: &EmbeddedStore, range: TimeRange) -> Result<Vec<Kind>, StoreError> {
    let mut kinds = Vec::new();
    for kind in Kind::ALL {
        let filter = Filter { kind, selector: Selector::default(), range };
        let mut found = false;
        visit_matching(store, &filter, &mut |reader, series, _| {
            found = reader.has_profiles(series, range)?;
            Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if found {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

pub(super) fn visit_series(
    store: &EmbeddedStore,
    filter: &Filter,
    visit: &mut dyn FnMut(SeriesExtent) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    visit_matching(store, filter, &mut |reader, id, series| {
        Ok(match reader.extent(id, series, filter.range)? {
            Some(extent) => visit(extent),
            None => ControlFlow::Continue(()),
        })
    })
}

pub(super) fn visit_windows(
    store: &EmbeddedStore,
    filter: &Filter,
    visit: &mut dyn FnMut(&SeriesKey, u64, u64),
) -> Result<(), StoreError> {
    visit_matching(store, filter, &mut |reader, id, series| {
        for record in reader.profiles(id, filter.range) {
            let key = reader.decode(&record.key().map_err(|err| reader.failed(err))?)?;
            visit(&series, key.start_unix_ns, key.duration_ns);
        }
        Ok(ControlFlow::Continue(()))
    })
}

pub(super) fn visit_profiles(
    store: &EmbeddedStore,
    filter: &Filter,
    visit: &mut dyn FnMut(StoredProfile<'_>) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    visit_matching(store, filter, &mut |reader, id, series| {
        for record in reader.profiles(id, filter.range) {
            let (key, pprof_gz) = record.into_inner().map_err(|err| reader.failed(err))?;
            let key = reader.decode(&key)?;
            let flow = visit(StoredProfile {
                series: &series,
                start_unix_ns: key.start_unix_ns,
                duration_ns: key.duration_ns,
                pprof_gz: &pprof_gz,
            });
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

type VisitSeries<'a> =
    &'a mut dyn FnMut(&Reader<'_>, SeriesId, Arc<SeriesKey>) -> Result<ControlFlow<()>, StoreError>;

/// Shows `visit` every series of every partition that can have what the filter asks for.
fn visit_matching(
    store: &EmbeddedStore,
    filter: &Filter,
    visit: VisitSeries<'_>,
) -> Result<(), StoreError> {
    store.with_open(|open: &Open| {
        for partition in open.partitions() {
            if !partition.id.overlaps(filter.range) {
                continue;
            }
            let reader = Reader { store, partition: &partition };
            for id in reader.candidates(filter)? {
                let series = reader.series(id)?;
                if !filter.selector.matches(&series) {
                    continue;
                }
                if visit(&reader, id, Arc::new(series))?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    })
}

/// Reads one partition.
struct Reader<'a> {
    store: &'a EmbeddedStore,
    partition: &'a Partition,
}

impl Reader<'_> {
    /// Series of the filter's kind that have all label values it requires, ascending.
    fn candidates(&self, filter: &Filter) -> Result<Vec<SeriesId>, StoreError> {
        let mut required = filter.selector.required_values();
        let mut candidates = match required.next() {
            Some((name, value)) => self.indexed(&keys::index_of_label(filter.kind, name, value))?,
            None => self.indexed(&keys::index_of_all(filter.kind))?,
        };
        for (name, value) in required {
            if candidates.is_empty() {
                break;
            }
            let having = self.indexed(&keys::index_of_label(filter.kind, name, value))?;
            let having: HashSet<SeriesId> = having.into_iter().collect();
            candidates.retain(|id| having.contains(id));
        }
        Ok(candidates)
    }

    fn indexed(&self, prefix: &[u8]) -> Result<Vec<SeriesId>, StoreError> {
        let records = self.partition.keyspace.prefix(prefix);
        let ids = records.map(|record| {
            let key = record.key().map_err(|err| self.failed(err))?;
            keys::trailing_series_id(&key).ok_or_else(|| self.damaged("an index key is too short"))
        });
        ids.collect()
    }

    fn series(&self, id: SeriesId) -> Result<SeriesKey, StoreError> {
        let encoded = self.partition.keyspace.get(keys::series(id));
        let encoded = encoded.map_err(|err| self.failed(err))?;
        encoded
            .and_then(|encoded| keys::decode_series(&encoded))
            .ok_or_else(|| self.damaged("a series in the index is missing or unreadable"))
    }

    fn profiles(&self, id: SeriesId, range: TimeRange) -> fjall::Iter {
        let from = keys::profiles_from(id, range.start_unix_ns);
        // An empty range must not become an inverted one.
        let to = keys::profiles_from(id, range.end_unix_ns.max(range.start_unix_ns));
        self.partition.keyspace.range(from..to)
    }

    fn has_profiles(&self, id: SeriesId, range: TimeRange) -> Result<bool, StoreError> {
        let first = self.profiles(id, range).next();
        first
            .map(|record| record.key())
            .transpose()
            .map_err(|err| self.failed(err))
            .map(|key| key.is_some())
    }

    fn extent(
        &self,
        id: SeriesId,
        series: Arc<SeriesKey>,
        range: TimeRange,
    ) -> Result<Option<SeriesExtent>, StoreError> {
        let mut extent: Option<SeriesExtent> = None;
        for record in self.profiles(id, range) {
            let key = self.decode(&record.key().map_err(|err| self.failed(err))?)?;
            let extent = extent.get_or_insert_with(|| SeriesExtent {
                series: Arc::clone(&series),
                first_unix_ns: key.start_unix_ns,
                last_unix_ns: 0,
                profiles: 0,
            });
            let end_unix_ns = key.start_unix_ns.saturating_add(key.duration_ns);
            extent.last_unix_ns = extent.last_unix_ns.max(end_unix_ns);
            extent.profiles += 1;
        }
        Ok(extent)
    }

    fn decode(&self, key: &Slice) -> Result<ProfileKey, StoreError> {
        ProfileKey::decode(key).ok_or_else(|| self.damaged("a profile key has the wrong length"))
    }

    fn failed(&self, err: fjall::Error) -> StoreError {
        self.store.engine_error("read profiles", err)
    }

    fn damaged(&self, what: &'static str) -> StoreError {
        let partition = self.partition.id.to_string();
        StoreError::Damaged { path: self.store.data_dir.clone(), partition, what }
    }
}
