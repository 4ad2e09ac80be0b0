//! Where acknowledged profiles live.
//!
//! [`Store`] is everything the rest of the collector knows about storage, so that
//! an embedded store and a shared database are interchangeable. Its invariant:
//! when [`Store::commit`] returns, the batches survive a crash, and a batch id is
//! stored at most once however often it is committed.

pub mod disk;
pub mod embedded;
pub mod lock;

use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

use axum::body::Bytes;
use everflame_profile::Kind;
use serde::Serialize;

use crate::query::selector::Selector;

pub use disk::Room;
pub use embedded::EmbeddedStore;

/// What a sender chose to recognise a batch by.
pub type BatchId = [u8; 16];

/// What tells one stream of profiles from another: the kind and the labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SeriesKey {
    /// The profile kind.
    pub kind: Kind,
    /// Label names and values, sorted by name; names are unique, no string has a NUL.
    pub labels: Vec<(String, String)>,
}

impl SeriesKey {
    /// The value of a label; "" when the series does not have it, as in PromQL.
    pub fn label(&self, name: &str) -> &str {
        self.labels
            .binary_search_by(|(candidate, _)| candidate.as_str().cmp(name))
            .ok()
            .and_then(|index| self.labels.get(index))
            .map_or("", |(_, value)| value.as_str())
    }
}

/// A batch that has passed validation.
#[derive(Debug, Clone)]
pub struct ValidBatch {
    /// Chosen by the sender.
    pub id: BatchId,
    /// At least one.
    pub profiles: Vec<ValidProfile>,
}

/// A profile that has passed validation.
#[derive(Debug, Clone)]
pub struct ValidProfile {
    /// Kind and labels.
    pub series: SeriesKey,
    /// When its window began, in nanoseconds since the Unix epoch.
    pub start_unix_ns: u64,
    /// How long its window was.
    pub duration_ns: u64,
    /// How many samples it has, for the metrics.
    pub samples: u64,
    /// As received.
    pub pprof_gz: Bytes,
}

/// What became of a committed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// It is durable now.
    Stored,
    /// It was durable before.
    Duplicate,
}

/// The half-open range [start, end) of window starts, in nanoseconds since the Unix epoch.
///
/// A profile belongs to the range in which its window starts, so that adjacent
/// ranges count it exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeRange {
    /// The first instant inside.
    pub start_unix_ns: u64,
    /// The first instant after.
    pub end_unix_ns: u64,
}

/// Which profiles a query is about.
#[derive(Debug, Clone)]
pub struct Filter {
    /// The profile kind.
    pub kind: Kind,
    /// Conditions on the labels.
    pub selector: Selector,
    /// Conditions on the time.
    pub range: TimeRange,
}

/// A series and what it has in a time range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesExtent {
    /// Kind and labels.
    pub series: Arc<SeriesKey>,
    /// The start of its first window.
    pub first_unix_ns: u64,
    /// The end of its last window.
    pub last_unix_ns: u64,
    /// How many profiles it has.
    pub profiles: u64,
}

/// A profile as it is read back.
#[derive(Debug)]
pub struct StoredProfile<'a> {
    /// Kind and labels.
    pub series: &'a Arc<SeriesKey>,
    /// When its window began.
    pub start_unix_ns: u64,
    /// How long its window was.
    pub duration_ns: u64,
    /// A gzip'd pprof profile that was valid when it was stored.
    pub pprof_gz: &'a [u8],
}

/// Something small that is kept beside profiles, until it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What kind of thing; has no NUL.
    pub collection: &'static str,
    /// Which one.
    pub key: String,
    /// `None` deletes it.
    pub content: Option<Vec<u8>>,
}

impl Document {
    /// A document of JSON.
    pub fn json(collection: &'static str, key: &str, content: &impl Serialize) -> Self {
        // Fails for maps whose keys are no strings, which ours are.
        let content = serde_json::to_vec(content).unwrap_or_default();
        Self { collection, key: key.to_owned(), content: Some(content) }
    }
}

/// How full a store is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of profiles and indexes, counted against the disk budget.
    pub data_bytes: u64,
    /// Bytes that the write-ahead log occupies on top of that.
    pub journal_bytes: u64,
}

/// What a round of maintenance has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Partitions deleted because they were older than the retention.
    pub expired_partitions: u64,
    /// Partitions deleted, oldest first, to get back below the disk budget.
    pub evicted_partitions: u64,
    /// What the deleted partitions held.
    pub deleted_bytes: u64,
    /// Times that the store was opened anew because a write had failed.
    pub reopened: u64,
}

/// Durable storage of profiles. All methods block; call them off the async threads.
pub trait Store: Send + Sync + 'static {
    /// Makes the batches durable, all or none of them, and says for each what
    /// became of it. Batches with an id that is known are left out.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when that would eat into the free space that is to
    /// be kept; nothing was stored. Other errors leave open whether the batches
    /// were stored; committing them again is safe.
    fn commit(&self, batches: &[ValidBatch]) -> Result<Vec<Committed>, StoreError>;

    /// Whether there is room to commit anything at all; cheap.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] when there is not.
    fn check_room(&self) -> Result<Room, StoreError>;

    /// Whether commits work at the moment; may wait for the one that is under way.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`], or what else keeps batches from being stored.
    fn check_writable(&self) -> Result<(), StoreError>;

    /// The profile kinds that have a profile in the range.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn kinds(&self, range: TimeRange) -> Result<Vec<Kind>, StoreError>;

    /// Shows `visit` each matching series that has a profile in the range. The
    /// same series may come several times, with disjoint sets of profiles.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn visit_series(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(SeriesExtent) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// Shows `visit` when each matching profile's window began and how long it was, in nanoseconds; in no
    /// particular order, and without reading the profiles.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn visit_windows(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(&SeriesKey, u64, u64),
    ) -> Result<(), StoreError>;

    /// Shows `visit` each matching profile, in no particular order.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn visit_profiles(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(StoredProfile<'_>) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// The documents of a collection: keys and contents, sorted by key.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn documents(&self, collection: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Makes documents durable, all or none of them.
    ///
    /// # Errors
    /// When the store does not take them.
    fn put_documents(&self, documents: &[Document]) -> Result<(), StoreError>;

    /// Enforces retention and the disk budget, and recovers from what can be
    /// recovered from. To be called every few seconds.
    ///
    /// # Errors
    /// When something could not be deleted or recovered; to be tried again.
    fn maintain(&self, now_unix_ns: u64) -> Result<Maintained, StoreError>;

    /// How full the store is.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    fn usage(&self) -> Result<Usage, StoreError>;
}

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the data directory.
    #[error(
        "another everflame-server uses the data directory {}; stop it or pass another --data-dir",
        path.display()
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
    },
    /// Less free space than is to be kept.
    #[error(
        "no room for profiles in {}: {free_bytes} bytes are free, {needed_bytes} are needed; \
         free some space, or lower --max-disk-bytes, --retention or --min-free-bytes",
        path.display()
    )]
    NoRoom {
        /// The data directory.
        path: PathBuf,
        /// What an unprivileged process may still write.
        free_bytes: u64,
        /// The space to be kept free, and the batches.
        needed_bytes: u64,
    },
    /// The storage engine refuses writes after an earlier failure, until it is reopened.
    #[error("the storage engine in {} stopped writing after a failure; it will be reopened", path.display())]
    Suspended {
        /// The data directory.
        path: PathBuf,
    },
    /// The storage engine failed.
    #[error("the storage engine failed to {action} in {}", path.display())]
    Engine {
        /// What it was doing.
        action: &'static str,
        /// The data directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<fjall::Error>,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is in the directory does not check out.
    #[error(
        "the data in {} is damaged, or another program's; restore it from a backup, or move it \
         away to begin anew",
        path.display()
    )]
    Unreadable {
        /// The data directory.
        path: PathBuf,
        /// Where it was noticed.
        #[source]
        source: Box<fjall::Error>,
    },
    /// A record that is not what this program writes.
    #[error("a damaged record in partition {partition} of {}: {what}", path.display())]
    Damaged {
        /// The data directory.
        path: PathBuf,
        /// The partition it is in.
        partition: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Written by another version of this program.
    #[error(
        "{} holds data in format {found:?}, this version reads {expected:?}; \
         use the version that wrote it or another --data-dir",
        path.display()
    )]
    Format {
        /// The data directory.
        path: PathBuf,
        /// The format that was found.
        found: String,
        /// The format that was expected.
        expected: &'static str,
    },
}

impl StoreError {
    /// Whether the same request may succeed when it is made again later.
    pub fn is_temporary(&self) -> bool {
        !matches!(self, Self::Locked { .. } | Self::Format { .. } | Self::Unreadable { .. })
    }
}
