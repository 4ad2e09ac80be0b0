//! What is in a spool: an index of the batches on disk and in memory.
//!
//! Only bookkeeping; reading and writing batches is the spool's, outside of its lock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use prost::bytes::Bytes;
use tracing::debug;

use super::BatchId;
use super::spool_file::{FileRole, SpoolName};

/// The batches of a spool, by age and by id.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) entries: BTreeMap<SpoolName, Stored>,
    pub(super) names: HashMap<BatchId, SpoolName>,
    pub(super) newest: Option<SpoolName>,
    pub(super) disk_bytes: u64,
    pub(super) memory_batches: usize,
    /// Files of batches that have left, to be deleted when the lock is released.
    pub(super) doomed: Vec<SpoolName>,
    /// Damaged files, oldest first.
    pub(super) bad: VecDeque<SpoolName>,
}

/// Where a batch is.
#[derive(Debug)]
pub(super) enum Stored {
    Disk { bytes: u64, unreadable: Option<Unreadable> },
    Memory(Bytes),
}

/// A file that could not be read for a reason that may pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unreadable {
    pub(super) retry_at: Instant,
    pub(super) wait: Duration,
}

impl Stored {
    pub(super) fn on_disk(bytes: u64) -> Self {
        Self::Disk { bytes, unreadable: None }
    }

    /// When it can be tried again, if that is later than `now`.
    pub(super) fn retry_after(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Disk { unreadable: Some(unreadable), .. } => {
                Some(unreadable.retry_at).filter(|retry_at| *retry_at > now)
            }
            Self::Disk { unreadable: None, .. } | Self::Memory(_) => None,
        }
    }
}

impl Index {
    /// What is in the directory; removes what a dying agent left half-written.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let mut index = Self::default();
        for file in fs::read_dir(dir)? {
            let file = file?;
            match file.file_name().to_str().map_or(FileRole::Foreign, FileRole::of) {
                FileRole::Batch(name) => {
                    let Ok(metadata) = file.metadata() else { continue };
                    // The same batch twice would mean a copied file; the first one counts.
                    if metadata.is_file() && !index.names.contains_key(&name.batch_id) {
                        index.disk_bytes += metadata.len();
                        index.names.insert(name.batch_id, name);
                        index.entries.insert(name, Stored::on_disk(metadata.len()));
                    }
                }
                FileRole::Temporary => {
                    if let Err(error) = fs::remove_file(file.path()) {
                        debug!(path = %file.path().display(), %error, "cannot delete a leftover");
                    }
                }
                FileRole::Bad(name) => index.bad.push_back(name),
                FileRole::Foreign => {}
            }
        }
        index.bad.make_contiguous().sort_unstable();
        index.newest = index.entries.keys().next_back().copied();
        Ok(index)
    }

    /// Takes a batch out and returns its size. Its file, if it has one, is doomed.
    pub(super) fn remove(&mut self, name: SpoolName) -> u64 {
        self.names.remove(&name.batch_id);
        match self.entries.remove(&name) {
            Some(Stored::Disk { bytes, .. }) => {
                self.disk_bytes -= bytes;
                self.doomed.push(name);
                bytes
            }
            Some(Stored::Memory(content)) => {
                self.memory_batches -= 1;
                content.len() as u64
            }
            None => 0,
        }
    }
}
