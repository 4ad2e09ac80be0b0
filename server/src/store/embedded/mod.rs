//! The embedded store: one directory, no other process.
//!
//! fjall's journal is the write-ahead log. A commit is one atomic write across the
//! keyspaces that it touches (batch ids, series, profiles), synced before it
//! returns; so a batch id is known exactly when its profiles are stored.
//!
//! Locks, in the order in which they are taken: `commits` (one writer at a time),
//! `open` (held for reading by whatever uses the engine, for writing only to
//! reopen it), `partitions` (short).

mod batch_ids;
mod commit;
mod documents;
mod keys;
mod maintain;
mod partition;
mod scan;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use everflame_profile::Kind;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use self::{
    batch_ids::BatchIds,
    partition::{Partition, PartitionId},
};
use super::{
    Committed, Document, Filter, Maintained, Room, SeriesExtent, SeriesKey, Store, StoreError,
    StoredProfile, TimeRange, Usage, ValidBatch, disk, lock::DataDirLock,
};

/// The engine's own directory within the data directory.
const ENGINE_DIR: &str = "store";
const META: &str = "meta";
const DOCUMENTS: &str = "documents";
const FORMAT_KEY: &str = "format";
const FORMAT: &str = "1";
const NEXT_PROFILE_KEY: &str = "next_profile";
/// The journal is flushed and shortened beyond this, so it bounds what is on disk
/// twice and how long recovery takes.
const MAX_JOURNAL_BYTES: u64 = 128 << 20;
/// Table files kept open; connections need descriptors as well.
const MAX_OPEN_FILES: usize = 256;

/// Limits that the embedded store keeps by itself.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedOptions {
    /// Profiles older than this are deleted.
    pub retention: Duration,
    /// The oldest profiles are deleted when there is more than this.
    pub max_disk_bytes: u64,
    /// Commits are refused when less than this would stay free.
    pub min_free_bytes: u64,
    /// What the engine may keep in memory of what it has read.
    pub cache_bytes: u64,
}

/// A [`Store`] in a directory of its own.
pub struct EmbeddedStore {
    data_dir: PathBuf,
    options: EmbeddedOptions,
    commits: Mutex<()>,
    open: RwLock<Option<Open>>,
    _lock: DataDirLock,
}

/// The engine and what was read from it.
struct Open {
    database: Database,
    meta: Keyspace,
    documents: Keyspace,
    partitions: RwLock<BTreeMap<PartitionId, Arc<Partition>>>,
    batch_ids: Mutex<BatchIds>,
    next_profile: Mutex<u64>,
}

impl EmbeddedStore {
    /// Opens the store in `data_dir`, creating it when it does not exist, and
    /// replays what was acknowledged before a crash.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process has the directory; others when it cannot
    /// be read.
    pub fn open(data_dir: &Path, options: EmbeddedOptions) -> Result<Self, StoreError> {
        let lock = DataDirLock::acquire(data_dir)?;
        let store = Self {
            data_dir: data_dir.to_owned(),
            options,
            commits: Mutex::new(()),
            open: RwLock::new(None),
            _lock: lock,
        };
        let open = store.open_engine()?;
        *store.open.write().unwrap_or_else(PoisonError::into_inner) = Some(open);
        Ok(store)
    }

    /// Writes everything that is in memory to table files and merges those, so
    /// that the size on disk is what it will be in the long run. For benchmarks.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn compact(&self) -> Result<(), StoreError> {
        self.with_open(|open| {
            for partition in open.partitions() {
                let keyspace = &partition.keyspace;
                keyspace
                    .rotate_memtable_and_wait()
                    .and_then(|()| keyspace.major_compact())
                    .map_err(|err| self.engine_error("compact", err))?;
            }
            Ok(())
        })
    }

    fn open_engine(&self) -> Result<Open, StoreError> {
        let open = || {
            let database = Database::builder(self.data_dir.join(ENGINE_DIR))
                .cache_size(self.options.cache_bytes)
                // What is large in the journal is compressed already.
                .journal_compression(CompressionType::None)
                .max_journaling_size(MAX_JOURNAL_BYTES)
                .max_cached_files(Some(MAX_OPEN_FILES))
                .manual_journal_persist(true)
                .open()?;
            let meta = database.keyspace(META, KeyspaceCreateOptions::default)?;
            let format = match meta.get(FORMAT_KEY)? {
                Some(format) => String::from_utf8_lossy(&format).into_owned(),
                None => {
                    meta.insert(FORMAT_KEY, FORMAT)?;
                    database.persist(PersistMode::SyncAll)?;
                    FORMAT.to_owned()
                }
            };
            let next_profile = meta.get(NEXT_PROFILE_KEY)?;
            let next_profile = next_profile.and_then(|bytes| bytes.as_ref().try_into().ok());
            let mut partitions = BTreeMap::new();
            for id in database.list_keyspace_names().iter().filter_map(|n| PartitionId::parse(n)) {
                partitions.insert(id, Arc::new(Partition::open(&database, id)?));
            }
            let open = Open {
                batch_ids: Mutex::new(BatchIds::open(&database)?),
                next_profile: Mutex::new(next_profile.map_or(0, u64::from_be_bytes)),
                partitions: RwLock::new(partitions),
                documents: database.keyspace(DOCUMENTS, KeyspaceCreateOptions::default)?,
                database,
                meta,
            };
            Ok((open, format))
        };
        let (open, found) = open().map_err(|err| self.engine_error("open", err))?;
        if found != FORMAT {
            let path = self.data_dir.clone();
            return Err(StoreError::Format { path, found, expected: FORMAT });
        }
        Ok(open)
    }

    /// Runs `use_it` with the engine, which stays open for that long.
    fn with_open<T>(
        &self,
        use_it: impl FnOnce(&Open) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let guard: RwLockReadGuard<'_, Option<Open>> =
            self.open.read().unwrap_or_else(PoisonError::into_inner);
        // Empty only when reopening failed; maintenance tries again.
        let open = guard.as_ref().ok_or_else(|| self.suspended())?;
        use_it(open)
    }

    fn engine_error(&self, action: &'static str, source: fjall::Error) -> StoreError {
        use fjall::Error::{
            InvalidTag, InvalidTrailer, InvalidVersion, JournalRecovery, Poisoned, Unrecoverable,
        };
        let (path, source) = (self.data_dir.clone(), Box::new(source));
        match *source {
            Poisoned => self.suspended(),
            JournalRecovery(_) | InvalidVersion(_) | InvalidTrailer | InvalidTag(_)
            | Unrecoverable => StoreError::Unreadable { path, source },
            _ => StoreError::Engine { action, path, source },
        }
    }

    fn suspended(&self) -> StoreError {
        StoreError::Suspended { path: self.data_dir.clone() }
    }

    fn room(&self) -> Result<Room, StoreError> {
        Room::of(&self.data_dir).map_err(|source| StoreError::Io {
            action: "ask how much is free in",
            path: self.data_dir.clone(),
            source,
        })
    }

    /// Refuses when writing `bytes` would eat into the space to be kept free.
    fn check_room_for(&self, bytes: u64) -> Result<Room, StoreError> {
        let room = self.room()?;
        let needed_bytes = self.options.min_free_bytes.saturating_add(bytes);
        if room.free_bytes < needed_bytes {
            let path = self.data_dir.clone();
            return Err(StoreError::NoRoom { path, free_bytes: room.free_bytes, needed_bytes });
        }
        Ok(room)
    }
}

impl Open {
    /// The partitions as they are now, oldest first.
    fn partitions(&self) -> Vec<Arc<Partition>> {
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.values().cloned().collect()
    }
}

impl Store for EmbeddedStore {
    fn commit(&self, batches: &[ValidBatch]) -> Result<Vec<Committed>, StoreError> {
        commit::commit(self, batches)
    }

    fn check_room(&self) -> Result<Room, StoreError> {
        self.check_room_for(0)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        self.check_room()?;
        // While it is being reopened, that waits for queries; so do not wait for it.
        let Ok(open) = self.open.try_read() else { return Err(self.suspended()) };
        let open = open.as_ref().ok_or_else(|| self.suspended())?;
        // Fails once a write has failed.
        open.database
            .persist(PersistMode::Buffer)
            .map_err(|err| self.engine_error("check the journal", err))
    }

    fn kinds(&self, range: TimeRange) -> Result<Vec<Kind>, StoreError> {
        scan::kinds(self, range)
    }

    fn visit_series(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(SeriesExtent) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        scan::visit_series(self, filter, visit)
    }

    fn visit_windows(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(&SeriesKey, u64, u64),
    ) -> Result<(), StoreError> {
        scan::visit_windows(self, filter, visit)
    }

    fn visit_profiles(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(StoredProfile<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        scan::visit_profiles(self, filter, visit)
    }

    fn documents(&self, collection: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        documents::read(self, collection)
    }

    fn put_documents(&self, documents: &[Document]) -> Result<(), StoreError> {
        documents::put(self, documents)
    }

    fn maintain(&self, now_unix_ns: u64) -> Result<Maintained, StoreError> {
        maintain::maintain(self, now_unix_ns)
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        let engine_dir = self.data_dir.join(ENGINE_DIR);
        let journal_bytes = disk::occupied_bytes(&engine_dir, "jnl").map_err(|source| {
            StoreError::Io { action: "measure the journal in", path: engine_dir, source }
        })?;
        self.with_open(|open| {
            let data_bytes = open.partitions().iter().map(|partition| partition.bytes()).sum();
            Ok(Usage { data_bytes, journal_bytes })
        })
    }
}
