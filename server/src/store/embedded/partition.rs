//! A partition: the profiles of one hour, with the series they belong to.
//!
//! Partitions are what retention deletes: dropping one is deleting its files, so
//! nothing has to be rewritten and no index entry is left behind. That is why each
//! has its own series and index. An hour that grows beyond a share of the disk
//! budget continues in a further partition (`generation`), so that there is always
//! something smaller than the budget to delete.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use fjall::{
    AbstractTree as _, CompressionType, Database, Keyspace, KeyspaceCreateOptions,
    KvSeparationOptions,
    config::{BlockSizePolicy, CompressionPolicy},
};

use super::keys::{self, SeriesId};
use crate::store::TimeRange;

/// The length of a partition.
pub(super) const PARTITION_NS: u64 = 3_600 * 1_000_000_000;
const NAME_PREFIX: &str = "profiles-";
/// What a partition keeps in memory before it is written to a table file. The
/// journal has it too, so this bounds memory and recovery time, not durability.
const MAX_MEMTABLE_BYTES: u64 = 16 << 20;
/// Profiles at least this large go to files that compaction does not rewrite.
const SEPARATE_FROM_BYTES: u32 = 128;
/// What a partition remembers of its series, so that ingest need not look them up.
const MAX_CACHED_SERIES_BYTES: usize = 16 << 20;

/// Which hour since the epoch, and the how-manieth partition of that hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PartitionId {
    pub(super) hour: u64,
    pub(super) generation: u32,
}

impl PartitionId {
    /// The hour that an instant is in.
    pub(super) fn hour_of(unix_ns: u64) -> u64 {
        unix_ns / PARTITION_NS
    }

    /// The first instant after this partition.
    pub(super) fn end_unix_ns(self) -> u64 {
        self.hour.saturating_add(1).saturating_mul(PARTITION_NS)
    }

    pub(super) fn overlaps(self, range: TimeRange) -> bool {
        let start_unix_ns = self.hour.saturating_mul(PARTITION_NS);
        start_unix_ns < range.end_unix_ns && range.start_unix_ns < self.end_unix_ns()
    }

    /// Reads the name of a keyspace; `None` when it is not that of a partition.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (hour, generation) = name.strip_prefix(NAME_PREFIX)?.split_once('-')?;
        Some(Self { hour: hour.parse().ok()?, generation: generation.parse().ok()? })
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME_PREFIX}{}-{}", self.hour, self.generation)
    }
}

/// An open partition.
pub(super) struct Partition {
    pub(super) id: PartitionId,
    pub(super) keyspace: Keyspace,
    written_bytes: AtomicU64,
    catalog: Mutex<Catalog>,
}

/// What ingest has to know about a partition's series.
pub(super) struct Catalog {
    pub(super) next_series: SeriesId,
    /// Encoded series to id; a cache.
    ids: HashMap<Vec<u8>, SeriesId>,
    ids_bytes: usize,
    last_write: Instant,
}

impl Partition {
    /// Opens the partition, creating it when it does not exist.
    pub(super) fn open(database: &Database, id: PartitionId) -> Result<Self, fjall::Error> {
        let keyspace = database.keyspace(&id.to_string(), options)?;
        let last_series = match keyspace.prefix(keys::SERIES_PREFIX).next_back() {
            Some(record) => keys::trailing_series_id(&record.key()?),
            None => None,
        };
        let in_memory = keyspace.tree.active_memtable().size();
        Ok(Self {
            id,
            written_bytes: AtomicU64::new(keyspace.disk_space().saturating_add(in_memory)),
            catalog: Mutex::new(Catalog {
                next_series: last_series.map_or(0, |id| id.saturating_add(1)),
                ids: HashMap::new(),
                ids_bytes: 0,
                last_write: Instant::now(),
            }),
            keyspace,
        })
    }

    /// The id of a series, when it has one.
    pub(super) fn find_series(&self, encoded: &[u8]) -> Result<Option<SeriesId>, fjall::Error> {
        if let Some(id) = self.catalog().ids.get(encoded) {
            return Ok(Some(*id));
        }
        let Some(found) = self.keyspace.get(keys::series_id(encoded))? else { return Ok(None) };
        let id = keys::trailing_series_id(&found);
        if let Some(id) = id {
            self.catalog().remember(encoded.to_vec(), id);
        }
        Ok(id)
    }

    pub(super) fn next_series(&self) -> SeriesId {
        self.catalog().next_series
    }

    /// To be called when new series and profiles have become durable.
    pub(super) fn committed(&self, series: HashMap<Vec<u8>, SeriesId>, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut catalog = self.catalog();
        catalog.last_write = Instant::now();
        for (encoded, id) in series {
            catalog.next_series = catalog.next_series.max(id.saturating_add(1));
            catalog.remember(encoded, id);
        }
    }

    /// Bytes written to this partition, about what it takes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing was written for `idle`.
    pub(super) fn is_idle(&self, idle: std::time::Duration) -> bool {
        self.catalog().last_write.elapsed() >= idle
    }

    /// Gives back the memory that only ingest has a use for.
    pub(super) fn forget_series(&self) {
        self.catalog().forget();
    }

    /// Whether some of it is in memory only.
    pub(super) fn can_be_flushed(&self) -> bool {
        !self.keyspace.tree.active_memtable().is_empty()
    }

    fn catalog(&self) -> std::sync::MutexGuard<'_, Catalog> {
        // The catalog is consistent between any two statements that change it.
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog {
    fn remember(&mut self, encoded: Vec<u8>, id: SeriesId) {
        if self.ids_bytes >= MAX_CACHED_SERIES_BYTES {
            self.forget();
        }
        self.ids_bytes += encoded.len() + size_of::<(Vec<u8>, SeriesId)>();
        self.ids.insert(encoded, id);
    }

    fn forget(&mut self) {
        self.ids = HashMap::new();
        self.ids_bytes = 0;
    }
}

/// Profiles are compressed already; keys and series are not.
fn options() -> KeyspaceCreateOptions {
    let profiles = KvSeparationOptions::default()
        .compression(CompressionType::None)
        .separation_threshold(SEPARATE_FROM_BYTES);
    KeyspaceCreateOptions::default()
        .max_memtable_size(MAX_MEMTABLE_BYTES)
        .data_block_size_policy(BlockSizePolicy::all(16 << 10))
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        .with_kv_separation(Some(profiles))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_round_trip_and_sort_by_time() {
        let id = PartitionId { hour: 489_722, generation: 3 };
        assert_eq!(PartitionId::parse(&id.to_string()), Some(id));
        assert_eq!(PartitionId::parse("batches-20412"), None);
        assert!(id < PartitionId { hour: 489_723, generation: 0 });
    }

    #[test]
    fn remembered_series_are_bounded_and_can_be_forgotten() {
        let mut catalog = Catalog {
            next_series: 0,
            ids: HashMap::new(),
            ids_bytes: 0,
            last_write: Instant::now(),
        };
        for id in 0..100 {
            let mut encoded = vec![0; 1 << 20];
            encoded.push(id);
            catalog.remember(encoded, SeriesId::from(id));
        }
        let held: usize = catalog.ids.keys().map(Vec::len).sum();
        assert!((1 << 20..=MAX_CACHED_SERIES_BYTES + (2 << 20)).contains(&held), "{held}");
        catalog.forget();
        assert_eq!((catalog.ids.len(), catalog.ids_bytes), (0, 0));
    }

    #[test]
    fn partitions_overlap_half_open_ranges() {
        let id = PartitionId { hour: 1, generation: 0 };
        let overlaps =
            |start, end| id.overlaps(TimeRange { start_unix_ns: start, end_unix_ns: end });
        assert!(overlaps(0, u64::MAX));
        assert!(overlaps(PARTITION_NS, PARTITION_NS + 1));
        assert!(!overlaps(0, PARTITION_NS));
        assert!(!overlaps(2 * PARTITION_NS, u64::MAX));
    }
}
