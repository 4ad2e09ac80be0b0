//! The spool: batches that the collector has not acknowledged, bounded and on disk.
//!
//! A batch is here from the moment its window is done until the collector has made it
//! durable, so neither an outage of the collector nor a restart of the agent loses it.
//! The spool has a budget in bytes; what does not fit pushes out the oldest, which is
//! counted. Spooling never fails towards its caller: when the disk refuses a batch, a
//! few are kept in memory until it accepts them again, and profiling goes on.
//!
//! Invariant: `entries` holds every batch exactly once, oldest first, and the sizes of
//! those on disk add up to at most the budget.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use everflame_proto::v1::Batch;
use prost::bytes::Bytes;
use tracing::{debug, info, warn};

use super::BatchId;
use super::spool_file::{self, FileRole, SpoolFileError, SpoolName};
use super::throttle::Throttle;
use crate::metrics::{Metrics, ReasonLabels};

/// The name of the file whose lock says that an agent uses the directory.
const LOCK_FILE: &str = "lock";

/// How many batches are kept in memory while the disk refuses them: half a minute's
/// worth, since memory is what a profiler must not run away with.
const MAX_MEMORY_BATCHES: usize = 4;

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
    state: Mutex<State>,
    trouble: Throttle,
    /// Held, not used: closing it releases the directory.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<SpoolName, Stored>,
    names: HashMap<BatchId, SpoolName>,
    newest: Option<SpoolName>,
    disk_bytes: u64,
    memory_batches: usize,
}

#[derive(Debug)]
enum Stored {
    Disk { bytes: u64 },
    Memory(Bytes),
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
    /// Its file was damaged or vanished.
    Corrupt,
}

impl Loss {
    fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::TooLarge => "too_large",
            Self::DiskRefused => "disk_refused",
            Self::Corrupt => "corrupt",
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
            state: Mutex::new(list(dir)?),
            trouble: Throttle::default(),
            _lock: lock,
        };
        let mut state = spool.state();
        spool.enforce_budget(&mut state);
        if !state.entries.is_empty() {
            info!(batches = state.entries.len(), bytes = state.disk_bytes, dir = %dir.display(),
                "found batches of an earlier run in the spool");
        }
        spool.publish(&state);
        drop(state);
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
        if let Err(error) = self.write_out(&mut state)
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
        self.publish(&state);
        id
    }

    /// The oldest batch for which `skip` is false. Damaged files on the way to it are
    /// deleted and counted.
    pub fn oldest(&self, skip: impl Fn(&BatchId) -> bool) -> Option<(BatchId, Batch)> {
        let mut state = self.state();
        loop {
            let (&name, stored) = state.entries.iter().find(|(name, _)| !skip(&name.batch_id))?;
            let batch = match stored {
                Stored::Disk { .. } => spool_file::read(&self.dir, &name),
                Stored::Memory(content) => {
                    spool_file::decode(content.clone(), &name.path(&self.dir))
                }
            };
            match batch {
                Ok(batch) => return Some((name.batch_id, batch)),
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "dropping a spooled batch that cannot be read"
                    );
                    let bytes = self.remove(&mut state, name);
                    self.count_loss(Loss::Corrupt, bytes);
                    self.publish(&state);
                }
            }
        }
    }

    /// Removes a batch that the collector has, or never wants. False when it is not
    /// here (any more).
    pub fn acknowledge(&self, id: &BatchId) -> bool {
        let mut state = self.state();
        let Some(&name) = state.names.get(id) else { return false };
        self.remove(&mut state, name);
        self.publish(&state);
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

    fn state(&self) -> MutexGuard<'_, State> {
        // No step leaves the state half-changed, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves batches from memory to disk, oldest first, until one fails.
    fn write_out(&self, state: &mut State) -> Result<(), SpoolFileError> {
        for (name, stored) in &mut state.entries {
            let Stored::Memory(content) = stored else { continue };
            spool_file::write(&self.dir, name, content)?;
            let bytes = content.len() as u64;
            *stored = Stored::Disk { bytes };
            state.disk_bytes += bytes;
            state.memory_batches -= 1;
        }
        Ok(())
    }

    fn enforce_budget(&self, state: &mut State) {
        while state.disk_bytes > self.max_bytes {
            self.drop_oldest(state, Loss::Budget, |stored| matches!(stored, Stored::Disk { .. }));
        }
        while state.memory_batches > MAX_MEMORY_BATCHES {
            self.drop_oldest(state, Loss::DiskRefused, |s| matches!(s, Stored::Memory(_)));
        }
    }

    fn drop_oldest(&self, state: &mut State, loss: Loss, which: impl Fn(&Stored) -> bool) {
        let oldest = state.entries.iter().find(|(_, stored)| which(stored)).map(|(name, _)| *name);
        if let Some(name) = oldest {
            let bytes = self.remove(state, name);
            self.count_loss(loss, bytes);
            if self.trouble.allow() {
                warn!(batch = %name.batch_id, reason = loss.name(),
                    "the spool is full; dropping its oldest batches (they are counted)");
            }
        }
    }

    /// Takes a batch out and returns its size.
    fn remove(&self, state: &mut State, name: SpoolName) -> u64 {
        state.names.remove(&name.batch_id);
        match state.entries.remove(&name) {
            Some(Stored::Disk { bytes }) => {
                state.disk_bytes -= bytes;
                let path = name.path(&self.dir);
                match fs::remove_file(&path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // It comes back at the next start and is then a duplicate for the
                    // collector; no reason to stop.
                    Err(error) => debug!(path = %path.display(), %error, "cannot delete"),
                }
                bytes
            }
            Some(Stored::Memory(content)) => {
                state.memory_batches -= 1;
                content.len() as u64
            }
            None => 0,
        }
    }

    fn count_loss(&self, loss: Loss, bytes: u64) {
        let labels = ReasonLabels { reason: loss.name() };
        self.metrics.spool_dropped_batches.get_or_create(&labels).inc();
        self.metrics.spool_dropped_bytes.get_or_create(&labels).inc_by(bytes);
    }

    fn publish(&self, state: &State) {
        self.metrics.spool_batches.set(state.entries.len().try_into().unwrap_or(i64::MAX));
        self.metrics.spool_bytes.set(state.disk_bytes.try_into().unwrap_or(i64::MAX));
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

/// What is in the directory; removes what a dying agent left half-written.
fn list(dir: &Path) -> Result<State, SpoolError> {
    let error = |source| SpoolError::List { path: dir.to_path_buf(), source };
    let mut state = State::default();
    for file in fs::read_dir(dir).map_err(error)? {
        let file = file.map_err(error)?;
        match file.file_name().to_str().map_or(FileRole::Foreign, FileRole::of) {
            FileRole::Batch(name) => {
                let Ok(metadata) = file.metadata() else { continue };
                // The same batch twice would mean a copied file; the first one counts.
                if metadata.is_file() && !state.names.contains_key(&name.batch_id) {
                    state.disk_bytes += metadata.len();
                    state.names.insert(name.batch_id, name);
                    state.entries.insert(name, Stored::Disk { bytes: metadata.len() });
                }
            }
            FileRole::Temporary => {
                if let Err(error) = fs::remove_file(file.path()) {
                    debug!(path = %file.path().display(), %error, "cannot delete a leftover");
                }
            }
            FileRole::Foreign => {}
        }
    }
    state.newest = state.entries.keys().next_back().copied();
    Ok(state)
}

fn unix_ns_now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}
