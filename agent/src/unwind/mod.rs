//! Gives the BPF programs what they need to walk stacks without frame pointers.
//!
//! ```text
//! exec, dlopen (side-band) -> worker: layout of the process --+-> pages, maps -> BPF walk
//!                                |                            |
//!                                +-> compiler: file -> table -+
//! sample that met a missing table -> worker: finished against the same pages -> profiler
//! ```
//!
//! Two threads. The *worker* owns all maps and never waits for a file; the *compiler* turns
//! one file after the other into a table, or takes it from the cache on disk. What they hold
//! is bounded: pages by a byte budget, of which layouts have a share, with the least recently
//! used leaving first (`evict`, `idle`); waiting samples by number and bytes.
//!
//! Invariant: a page that a BPF program may still be reading is not written to. Pages that
//! are given back wait until every program that could have seen them has ended (`pages`).

mod compiler;
mod evict;
mod finish;
mod idle;
mod key;
mod layout;
mod pages;
mod processes;
mod stats;
mod tables;
#[cfg(test)]
mod tests;
mod waiting;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use everflame_unwind::Limits;
use everflame_unwind::cache::Cache;
use thiserror::Error;
use tracing::{info, warn};

pub use finish::{Finished, Unfinished};
pub use stats::UnwindStats;

use crate::collect::{ProcessEvent, UnwindMaps};
use compiler::Compiler;
use worker::{Message, Worker};

/// Messages that wait for the worker, at most; a busy host makes some hundred a second.
const MAX_MESSAGES: usize = 64 * 1024;

/// How much memory tables may take, and where they are kept.
#[derive(Clone, Debug)]
pub struct UnwindConfig {
    /// Kernel memory for pages of rules and layouts.
    pub max_bytes: u64,
    /// Where compiled tables are kept for the next start.
    pub cache_dir: Option<PathBuf>,
    /// Bytes on disk, at most.
    pub cache_max_bytes: u64,
}

/// Where tables are kept unless said otherwise.
pub const DEFAULT_CACHE_DIR: &str = "/var/cache/everflame/unwind";

impl Default for UnwindConfig {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            cache_dir: Some(PathBuf::from(DEFAULT_CACHE_DIR)),
            cache_max_bytes: 256 << 20,
        }
    }
}

/// Why stacks cannot be walked.
#[derive(Debug, Error)]
pub enum UnwindError {
    /// No thread could be started.
    #[error("cannot start the unwinder's threads")]
    Thread {
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The first page could not be allocated.
    #[error("cannot allocate kernel memory for unwind tables")]
    Memory {
        /// What the kernel says.
        #[source]
        source: aya::maps::MapError,
    },
}

/// The running worker. It ends when this is dropped.
#[derive(Debug)]
pub struct Unwinder {
    messages: SyncSender<Message>,
    finished: Receiver<Finished>,
    stats: Arc<Mutex<UnwindStats>>,
    ending: Arc<AtomicBool>,
}

/// The worker has a bug and is gone.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the unwinder's thread has ended")]
pub struct UnwinderEnded;

impl Unwinder {
    /// Starts the threads.
    ///
    /// # Errors
    /// When there is no kernel memory, or a thread cannot be started.
    pub fn start(maps: UnwindMaps, config: &UnwindConfig) -> Result<Self, UnwindError> {
        let (messages, inbox) = sync_channel(MAX_MESSAGES);
        let (outbox, finished) = channel();
        let stats = Arc::new(Mutex::new(UnwindStats::default()));
        let cache = config.cache_dir.as_deref().and_then(|dir| {
            match Cache::open(dir, config.cache_max_bytes) {
                Ok(cache) => {
                    info!(dir = %dir.display(), "compiled unwind tables are kept");
                    Some(cache)
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "unwind tables are compiled anew at each start");
                    None
                }
            }
        });
        let compiler = Compiler::start(cache, Limits::default(), messages.clone())
            .map_err(|source| UnwindError::Thread { source })?;
        let ending = Arc::new(AtomicBool::new(false));
        let shared = (Arc::clone(&stats), Arc::clone(&ending));
        let worker = Worker::new(maps, config.max_bytes, compiler, outbox, shared)
            .map_err(|source| UnwindError::Memory { source })?;
        thread::Builder::new()
            .name("unwind".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(|source| UnwindError::Thread { source })?;
        Ok(Self { messages, finished, stats, ending })
    }

    /// Takes note of what happened to a process. False if there was no room for it: then
    /// the process is known only once /proc has been read again.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn observe(&self, time_ns: u64, event: &ProcessEvent) -> Result<bool, UnwinderEnded> {
        self.send(Message::Process { time_ns, event: event.clone() })
    }

    /// Has the tables of a process made that ran before the agent did, as it is about to be sampled. False if
    /// there was no room for that.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn prepare(&self, pid: u32) -> Result<bool, UnwinderEnded> {
        self.send(Message::Prepare { pid })
    }

    /// Asks for the rest of a stack; it comes by [`Self::finished`]. False if there was no
    /// room for it.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn finish(&self, unfinished: Unfinished) -> Result<bool, UnwinderEnded> {
        self.send(Message::Finish(Box::new(unfinished)))
    }

    /// Stacks that are complete by now, or as complete as they get.
    pub fn finished(&self) -> impl Iterator<Item = Finished> + '_ {
        self.finished.try_iter()
    }

    /// The next such stack, waited for until `deadline`.
    pub fn next_finished(&self, deadline: std::time::Instant) -> Option<Finished> {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        self.finished.recv_timeout(left).ok()
    }

    /// What tables there are and what they cost.
    pub fn stats(&self) -> UnwindStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn send(&self, message: Message) -> Result<bool, UnwinderEnded> {
        match self.messages.try_send(message) {
            Ok(()) => Ok(true),
            Err(TrySendError::Full(_)) => Ok(false),
            Err(TrySendError::Disconnected(_)) => Err(UnwinderEnded),
        }
    }
}

impl Drop for Unwinder {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        // Wakes the worker up. If the queue is full it is awake. The compiler, which holds
        // the other sender, ends with the worker.
        let _ = self.messages.try_send(Message::End);
    }
}
