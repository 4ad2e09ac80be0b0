//! The thread that turns files into tables, one after the other.
//!
//! One is enough: a million rows take a tenth of a second, and until a table is there stacks
//! are finished from copies. It runs at normal priority, as on a busy host others are always.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use everflame_unwind::cache::{Cache, CacheKey, CacheStats};
use everflame_unwind::{CompileError, Limits, Table, compile};

use super::key::Key;
use super::worker::Message;
use crate::object::{ObjectFile, ObjectKind};
use crate::symbolize::vdso_image;

/// Files that wait, at most.
const MAX_JOBS: usize = 16 * 1024;

/// Only what root owns is kept on disk: a build id is what a file claims.
const ROOT: u32 = 0;

/// What became of a file.
#[derive(Debug)]
pub(super) struct Compiled {
    /// Which file.
    pub(super) key: Key,
    /// Its table.
    pub(super) table: Result<Table, CompileError>,
    /// How long it took, unless it came from the cache.
    pub(super) compile_ns: Option<u64>,
    /// What the cache has done so far.
    pub(super) cache: CacheStats,
}

/// The handle to the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Compiler {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: BinaryHeap<Job>,
    ended: bool,
}

#[derive(Debug)]
struct Job {
    key: Key,
    object: Arc<ObjectFile>,
    /// Small files first: most processes need few large ones.
    bytes: u64,
}

impl Compiler {
    /// Starts the thread. Results go to `outbox`.
    pub(super) fn start(
        cache: Option<Cache>,
        limits: Limits,
        outbox: SyncSender<Message>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread_shared = Arc::clone(&shared);
        thread::Builder::new().name("unwind-compile".to_owned()).spawn(move || {
            while let Some(job) = thread_shared.next() {
                let compiled = run(&job, cache.as_ref(), &limits);
                drop(job);
                if outbox.send(Message::Compiled(Box::new(compiled))).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { shared })
    }

    /// Asks for a file's table. False if too many wait already.
    pub(super) fn request(&self, key: Key, object: Arc<ObjectFile>) -> bool {
        let mut queue = self.shared.lock();
        if queue.jobs.len() >= MAX_JOBS {
            return false;
        }
        let bytes = match &object.kind {
            ObjectKind::Elf { file: Some(file) } => file.metadata().map_or(0, |data| data.len()),
            _ => 0,
        };
        queue.jobs.push(Job { key, object, bytes });
        self.shared.changed.notify_one();
        true
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.ended {
                return None;
            }
            if let Some(job) = queue.jobs.pop() {
                return Some(job);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn run(job: &Job, cache: Option<&Cache>, limits: &Limits) -> Compiled {
    let cache_key = match job.key {
        Key::BuildId { build_id, size, owner: ROOT } => CacheKey::new(build_id.as_bytes(), size),
        Key::BuildId { .. } | Key::Inode(..) | Key::Vdso => None,
    };
    let cached = cache.zip(cache_key).and_then(|(cache, key)| cache.get(&key));
    let from_cache = cached.is_some();
    let start = Instant::now();
    let table = cached.map_or_else(
        || {
            // A file must not end the unwinding of all others.
            catch_unwind(AssertUnwindSafe(|| compile_object(&job.object, limits)))
                .unwrap_or(Err(CompileError::Malformed { what: "file (the compiler panicked)" }))
        },
        Ok,
    );
    let took = start.elapsed();
    if let (false, Ok(table), Some(cache), Some(key)) = (from_cache, &table, cache, cache_key) {
        cache.put(&key, table);
    }
    let compile_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    Compiled {
        key: job.key,
        table,
        compile_ns: (!from_cache).then_some(compile_ns),
        cache: cache.map(Cache::stats).unwrap_or_default(),
    }
}

fn compile_object(object: &ObjectFile, limits: &Limits) -> Result<Table, CompileError> {
    match &object.kind {
        ObjectKind::Elf { file: Some(file) } => compile(file, limits),
        ObjectKind::Vdso => match vdso_image() {
            Ok(image) => compile(&image, limits),
            Err(error) => {
                Err(CompileError::Read { offset: 0, len: 0, source: io::Error::other(error) })
            }
        },
        _ => Err(CompileError::NotElf64),
    }
}

impl Ord for Job {
    /// The greatest is taken first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.bytes, other.key).cmp(&(self.bytes, self.key))
    }
}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Job {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Job {}
