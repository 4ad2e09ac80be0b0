//! Compiled tables on disk, so that a restarted agent need not compile a host's libraries
//! anew.
//!
//! One file per table. It is written under a temporary name and renamed, and checked by
//! digest and by structure when it is read: whatever is not exactly what some agent of this
//! version has written is deleted, counted, and for the caller the same as a table that was
//! never there. Nothing that goes wrong here is an error to the caller, who can compile.
//!
//! Several agents may use one directory: they replace each other's files by equal ones, and
//! each keeps to its own budget.

mod directory;
pub mod entry;
mod key;
mod stats;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use crate::table::Table;
use directory::{Directory, Listed};
pub use entry::EntryError;
pub use key::CacheKey;

/// No table comes near this: [`crate::Limits`] allow a few tens of MiB.
const MAX_ENTRY_BYTES: u64 = 256 << 20;

/// Why a directory cannot be used.
#[derive(Debug, Error)]
pub enum CacheError {
    /// It cannot be made or opened.
    #[error("cannot open the cache directory {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could put tables there.
    #[error(
        "the cache directory {path} can be written by others (owner {owner}, mode {mode:o}); \
         give it to this user and take away write permission: `chmod go-w {path}`"
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
}

/// What a cache has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Tables that were there.
    pub hits: u64,
    /// Tables that were not, those that were discarded among them.
    pub misses: u64,
    /// Files discarded because they were torn or altered.
    pub corrupt: u64,
    /// Files discarded because another version of the agent wrote them.
    pub stale: u64,
    /// Files deleted to keep to the budget.
    pub evicted: u64,
    /// Tables not kept because they alone are larger than the budget.
    pub too_large: u64,
    /// Tables not kept because they could not be written, as when the disk is full.
    pub write_errors: u64,
    /// Bytes of the files, as far as this agent knows.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    corrupt: AtomicU64,
    stale: AtomicU64,
    evicted: AtomicU64,
    too_large: AtomicU64,
    write_errors: AtomicU64,
}

/// Tables in a directory. Can be shared by threads.
#[derive(Debug)]
pub struct Cache {
    directory: Directory,
    max_bytes: u64,
    /// Bytes of the files. Only making room looks at what is really there.
    bytes: Mutex<u64>,
    counters: Counters,
}

impl Cache {
    /// Opens a directory, or makes it, for tables of at most `max_bytes` together.
    ///
    /// # Errors
    /// The directory cannot be opened or made, or users other than this one and root could
    /// write to it.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, CacheError> {
        let directory = Directory::open(dir)?;
        let cache =
            Self { directory, max_bytes, bytes: Mutex::new(0), counters: Counters::default() };
        cache.directory.remove_leftovers();
        // What a smaller budget than last time has no room for goes at once.
        cache.make_room(0, &mut cache.lock());
        Ok(cache)
    }

    /// The table of this key, if it is there and intact.
    pub fn get(&self, key: &CacheKey) -> Option<Table> {
        let name = key.file_name();
        let found = match self.directory.open_file(&name) {
            Ok(None) => None,
            Ok(Some(file)) => match read(&file, key) {
                Ok(table) => {
                    self.directory.touch(&file);
                    Some(table)
                }
                Err(error) => {
                    self.discard(&name, &error);
                    None
                }
            },
            Err(error) => {
                self.discard(&name, &EntryError::Read(error));
                None
            }
        };
        let counter = if found.is_some() { &self.counters.hits } else { &self.counters.misses };
        counter.fetch_add(1, Relaxed);
        found
    }

    /// Keeps a table, or does not: see [`CacheStats`].
    pub fn put(&self, key: &CacheKey, table: &Table) {
        let len = entry::encoded_len(table);
        if len > self.max_bytes.min(MAX_ENTRY_BYTES) {
            self.counters.too_large.fetch_add(1, Relaxed);
            return;
        }
        {
            let mut bytes = self.lock();
            if *bytes + len > self.max_bytes {
                self.make_room(len, &mut bytes);
            }
            *bytes += len;
        }
        let name = key.file_name();
        let written = self.directory.write_file(&name, |file| entry::write(key, table, file));
        if written.is_err() {
            self.forget(len);
            self.counters.write_errors.fetch_add(1, Relaxed);
        }
    }

    /// What has happened so far.
    pub fn stats(&self) -> CacheStats {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = &self.counters;
        CacheStats {
            hits: of(&counters.hits),
            misses: of(&counters.misses),
            corrupt: of(&counters.corrupt),
            stale: of(&counters.stale),
            evicted: of(&counters.evicted),
            too_large: of(&counters.too_large),
            write_errors: of(&counters.write_errors),
            bytes: *self.lock(),
        }
    }

    fn discard(&self, name: &str, error: &EntryError) {
        let counter = match error {
            EntryError::Version => &self.counters.stale,
            _ => &self.counters.corrupt,
        };
        counter.fetch_add(1, Relaxed);
        // Another agent may have replaced it by a good one just now; then that one is
        // compiled once more.
        if let Some(len) = self.directory.remove(name) {
            self.forget(len);
        }
    }

    fn forget(&self, len: u64) {
        let mut bytes = self.lock();
        *bytes = bytes.saturating_sub(len);
    }

    /// Deletes what was not used for longest, until there is room for `incoming` bytes and
    /// some more, so that not every new table has to look through the directory.
    fn make_room(&self, incoming: u64, bytes: &mut u64) {
        let mut files = self.directory.list();
        files.sort_unstable_by_key(|file| file.used);
        let mut total: u64 = files.iter().map(|file| file.len).sum();
        if total + incoming > self.max_bytes {
            let target = (self.max_bytes - self.max_bytes / 8).max(incoming);
            for Listed { name, len, .. } in files {
                if total + incoming <= target {
                    break;
                }
                if self.directory.remove(&name).is_some() {
                    self.counters.evicted.fetch_add(1, Relaxed);
                }
                total = total.saturating_sub(len);
            }
        }
        *bytes = total;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u64> {
        // A count is a count, whatever became of the thread that changed it.
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(mut file: &File, key: &CacheKey) -> Result<Table, EntryError> {
    let metadata = file.metadata().map_err(EntryError::Read)?;
    if !metadata.is_file() || metadata.len() > MAX_ENTRY_BYTES {
        return Err(EntryError::Malformed { what: "kind of file" });
    }
    entry::read(key, metadata.len(), &mut file)
}
