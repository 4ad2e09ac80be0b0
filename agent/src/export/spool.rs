//! The spool: batches that the collector has not acknowledged, bounded and on disk.
//!
//! A batch is here from the moment its window is done until the collector has made it
//! durable, so neither an outage of the collector nor a restart of the agent loses it.
//! The spool has a budget in bytes; what does not fit pushes out the oldest, which is
//! counted. Spooling never fails towards its caller: when the disk refuses a batch, a
//! few are kept in memory until it accepts them again, and profiling goes on.
//!
//! A file that cannot be read just now (no file descriptors, a disk with trouble) stays
//! and is tried again; only one that is damaged is given up, and a few of those are kept
//! beside the spool for whoever wants to know why.
//!
//! Invariant: `entries` holds every batch exactly once, oldest first, and the sizes of
//! those on disk add up to at most the budget. Its lock is not held while the disk works,
//! so the thread that empties the spool does not wait for the one that fills it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use everflame_proto::v1::Batch;
use prost::bytes::Bytes;
use tracing::{debug, info, warn};

use super::BatchId;
use super::spool_file::{self, SpoolFileError, SpoolName};
use super::spool_index::{Index, Stored, Unreadable};
use super::throttle::Throttle;
use crate::metrics::{Metrics, ReasonLabels};

/// The name of the file whose lock says that an agent uses the directory.
const LOCK_FILE: &str = "lock";

/// How many batches are kept in memory while the disk refuses them: half a minute's
/// worth, since memory is what a profiler must not run away with.
const MAX_MEMORY_BATCHES: usize = 4;

/// How many damaged files are kept, over all runs; the newest ones.
const MAX_BAD_FILES: usize = 4;

/// The first and the longest wait before a file that cannot be read is tried again.
const READ_RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The directory does not exist and cannot be created.
    #[error("cannot create the spool directory {path}; choose another with --spool-dir")]
    CreateDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The lock file cannot be created or locked.
    #[error("cannot lock {path}; choose another directory with --spool-dir")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another agent has the directory.
    #[error(
        "another agent uses the spool directory {path}; stop it or choose another with --spool-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be listed.
    #[error("cannot list the spool directory {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A bounded queue of batches on disk, shared by the thread that fills it and the one
/// that empties it. One process at a time may have a directory open.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    max_bytes: u64,
    metrics: Arc<Metrics>,
    state: Mutex<Index>,
    /// Held while batches go from memory to disk, so that the oldest goes first.
    writer: Mutex<()>,
    trouble: Throttle,
    /// Held, not used: closing it releases the directory.
    _lock: File,
}

/// Why a batch leaves the spool without having been delivered.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Newer batches needed its room.
    Budget,
    /// It is larger than the whole budget.
    TooLarge,
    /// The disk refused it, and memory has room for a few only.
    DiskRefused,
    /// Its file is damaged.
    Corrupt,
    /// Somebody else deleted its file.
    Vanished,
}

impl Loss {
    fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::TooLarge => "too_large",
            Self::DiskRefused => "disk_refused",
            Self::Corrupt => "corrupt",
            Self::Vanished => "vanished",
        }
    }
}

impl Spool {
    /// Opens the directory, creating it if need be, and picks up what an earlier agent
    /// left there. `max_bytes` bounds the size of all batch files together.
    ///
    /// # Errors
    /// When the directory cannot be used at all or another agent has it. Damaged files
    /// are no error: they are found, and counted, when their turn comes.
    pub fn open(dir: &Path, max_bytes: u64, metrics: Arc<Metrics>) -> Result<Self, SpoolError> {
        // Profiles name the functions and labels of other people's programs.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| SpoolError::CreateDir { path: dir.to_path_buf(), source })?;
        let lock = lock(dir)?;
        let spool = Self {
            dir: dir.to_path_buf(),
            max_bytes,
            metrics,
            state: Mutex::new(
                Index::read(dir)
                    .map_err(|source| SpoolError::List { path: dir.to_path_buf(), source })?,
            ),
            writer: Mutex::default(),
            trouble: Throttle::default(),
            _lock: lock,
        };
        let mut state = spool.state();
        spool.enforce_budget(&mut state);
        if !state.entries.is_empty() {
            info!(batches = state.entries.len(), bytes = state.disk_bytes, dir = %dir.display(),
                "found batches of an earlier run in the spool");
        }
        spool.release(state);
        spool.bound_bad_files();
        Ok(spool)
    }

    /// Takes a batch into the spool and returns its id. A batch without a valid id gets
    /// a fresh one; one that is in the spool already is not added again.
    pub fn push(&self, mut batch: Batch) -> BatchId {
        let id = BatchId::from_slice(&batch.batch_id).unwrap_or_else(|_| {
            let id = BatchId::now_v7();
            batch.batch_id = id.as_bytes().to_vec();
            id
        });
        let content = spool_file::encode(&batch);
        let bytes = content.len() as u64;
        if bytes > self.max_bytes {
            self.count_loss(Loss::TooLarge, bytes);
            warn!(%id, bytes, budget = self.max_bytes,
                "a batch is larger than the spool's budget and is dropped");
            return id;
        }

        let mut state = self.state();
        if state.names.contains_key(&id) {
            return id;
        }
        let name = SpoolName::next(state.newest, unix_ns_now(), id);
        state.newest = Some(name);
        state.names.insert(id, name);
        // Straight into the queue; then the disk gets everything that memory holds, so
        // a disk that recovers takes the older ones first.
        state.entries.insert(name, Stored::Memory(content));
        state.memory_batches += 1;
        self.release(state);

        let written = self.write_out();
        let mut state = self.state();
        if let Err(error) = written
            && self.trouble.allow()
        {
            warn!(
                error = &error as &dyn std::error::Error,
                kept_in_memory = state.memory_batches,
                "cannot spool to disk; profiling goes on, and batches that the collector does not \
                 take soon will be dropped"
            );
        }
        self.enforce_budget(&mut state);
        self.release(state);
        id
    }

    /// The oldest batch for which `skip` is false. Damaged files on the way to it are set
    /// aside and counted; files that cannot be read at the moment are passed over for a
    /// while, see [`Self::next_retry`].
    pub fn oldest(&self, skip: impl Fn(&BatchId) -> bool) -> Option<(BatchId, Batch)> {
        loop {
            let now = Instant::now();
            let state = self.state();
            let (&name, stored) = state.entries.iter().find(|(name, stored)| {
                !skip(&name.batch_id) && stored.retry_after(now).is_none()
            })?;
            let content = match stored {
                Stored::Memory(content) => Some(content.clone()),
                Stored::Disk { .. } => None,
            };
            drop(state);
            let batch = match content {
                Some(content) => spool_file::decode(content, &name.path(&self.dir)),
                None => spool_file::read(&self.dir, &name),
            };
            match batch {
                // Unless its room was needed meanwhile, which has been counted as a loss.
                Ok(batch) if self.state().entries.contains_key(&name) => {
                    return Some((name.batch_id, batch));
                }
                Ok(_) => {}
                Err(error) => self.cannot_read(name, &error),
            }
        }
    }

    /// When a file that could not be read is to be tried again, unless that is now.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let now = Instant::now();
        self.state().entries.values().filter_map(|stored| stored.retry_after(now)).min()
    }

    /// Removes a batch that the collector has, or never wants. False when it is not
    /// here (any more).
    pub fn acknowledge(&self, id: &BatchId) -> bool {
        let mut state = self.state();
        let Some(&name) = state.names.get(id) else { return false };
        state.remove(name);
        self.release(state);
        true
    }

    /// How many batches wait.
    pub fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of all waiting batches, oldest first.
    pub fn batch_ids(&self) -> Vec<BatchId> {
        self.state().entries.keys().map(|name| name.batch_id).collect()
    }

    fn state(&self) -> MutexGuard<'_, Index> {
        // No step leaves the state half-changed, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a change: tells the metrics, and deletes files once nobody waits for it.
    fn release(&self, mut state: MutexGuard<'_, Index>) {
        self.metrics.spool_batches.set(state.entries.len().try_into().unwrap_or(i64::MAX));
        self.metrics.spool_bytes.set(state.disk_bytes.try_into().unwrap_or(i64::MAX));
        let doomed = std::mem::take(&mut state.doomed);
        drop(state);
        doomed.iter().for_each(|name| delete(&name.path(&self.dir)));
    }

    /// Moves batches from memory to disk, oldest first, until one fails.
    fn write_out(&self) -> Result<(), SpoolFileError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((name, content)) = self.oldest_in_memory() {
            spool_file::write(&self.dir, &name, &content)?;
            let bytes = content.len() as u64;
            let mut state = self.state();
            if let Some(stored) = state.entries.get_mut(&name) {
                *stored = Stored::on_disk(bytes);
                state.disk_bytes += bytes;
                state.memory_batches -= 1;
            } else {
                // Delivered from memory, or dropped, while it was written.
                state.doomed.push(name);
            }
            self.release(state);
        }
        Ok(())
    }

    fn oldest_in_memory(&self) -> Option<(SpoolName, Bytes)> {
        let state = self.state();
        if state.memory_batches == 0 {
            return None;
        }
        state.entries.iter().find_map(|(name, stored)| match stored {
            Stored::Memory(content) => Some((*name, content.clone())),
            Stored::Disk { .. } => None,
        })
    }

    fn enforce_budget(&self, state: &mut Index) {
        while state.disk_bytes > self.max_bytes {
            self.drop_oldest(state, Loss::Budget, |stored| matches!(stored, Stored::Disk { .. }));
        }
        while state.memory_batches > MAX_MEMORY_BATCHES {
            self.drop_oldest(state, Loss::DiskRefused, |s| matches!(s, Stored::Memory(_)));
        }
    }

    fn drop_oldest(&self, state: &mut Index, loss: Loss, which: impl Fn(&Stored) -> bool) {
        let oldest = state.entries.iter().find(|(_, stored)| which(stored)).map(|(name, _)| *name);
        if let Some(name) = oldest {
            let bytes = state.remove(name);
            self.count_loss(loss, bytes);
            if self.trouble.allow() {
                warn!(batch = %name.batch_id, reason = loss.name(),
                    "the spool is full; dropping its oldest batches (they are counted)");
            }
        }
    }

    /// Decides what becomes of a batch that was to be read.
    fn cannot_read(&self, name: SpoolName, error: &SpoolFileError) {
        let mut state = self.state();
        let Some(stored) = state.entries.get_mut(&name) else {
            // Dropped while it was read, and counted.
            return;
        };
        let loss = match error {
            SpoolFileError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Loss::Vanished
            }
            SpoolFileError::Torn { .. }
            | SpoolFileError::Unknown { .. }
            | SpoolFileError::Checksum { .. }
            | SpoolFileError::Decode { .. } => Loss::Corrupt,
            // Whatever this is, it is not the batch's fault: it may be read later.
            SpoolFileError::Read { .. } | SpoolFileError::Write { .. } => {
                if let Stored::Disk { unreadable, .. } = stored {
                    let (first, longest) = READ_RETRY;
                    let wait = unreadable.map_or(first, |last| (last.wait * 2).min(longest));
                    *unreadable = Some(Unreadable { retry_at: Instant::now() + wait, wait });
                }
                drop(state);
                self.metrics.spool_read_errors.inc();
                if self.trouble.allow() {
                    warn!(
                        error = error as &dyn std::error::Error,
                        "cannot read a spooled batch; it is kept and tried again"
                    );
                }
                return;
            }
        };
        warn!(
            error = error as &dyn std::error::Error,
            "giving up a spooled batch that cannot be read"
        );
        let bytes = state.remove(name);
        self.count_loss(loss, bytes);
        // Its file is not deleted but set aside, by the thread that is here anyway.
        state.doomed.retain(|doomed| *doomed != name);
        if matches!(loss, Loss::Corrupt) {
            state.bad.push_back(name);
        }
        self.release(state);
        if matches!(loss, Loss::Corrupt) {
            if let Err(error) = fs::rename(name.path(&self.dir), name.bad_path(&self.dir)) {
                debug!(batch = %name.batch_id, %error, "cannot set a damaged file aside");
                delete(&name.path(&self.dir));
            }
            self.bound_bad_files();
        }
    }

    /// Deletes the oldest damaged files when there are too many.
    fn bound_bad_files(&self) {
        let excess: Vec<SpoolName> = {
            let mut state = self.state();
            let excess = state.bad.len().saturating_sub(MAX_BAD_FILES);
            state.bad.drain(..excess).collect()
        };
        excess.iter().for_each(|name| delete(&name.bad_path(&self.dir)));
    }

    fn count_loss(&self, loss: Loss, bytes: u64) {
        let labels = ReasonLabels { reason: loss.name() };
        self.metrics.spool_dropped_batches.get_or_create(&labels).inc();
        self.metrics.spool_dropped_bytes.get_or_create(&labels).inc_by(bytes);
    }
}

fn delete(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A batch comes back at the next start and is then a duplicate for the collector;
        // no reason to stop.
        Err(error) => debug!(path = %path.display(), %error, "cannot delete"),
    }
}

fn lock(dir: &Path) -> Result<File, SpoolError> {
    let path = dir.join(LOCK_FILE);
    let file = match File::options().create(true).truncate(false).write(true).open(&path) {
        Ok(file) => file,
        Err(source) => return Err(SpoolError::Lock { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::InUse { path: dir.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(SpoolError::Lock { path, source }),
    }
}

fn unix_ns_now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}
