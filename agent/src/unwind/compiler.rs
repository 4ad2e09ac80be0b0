//! The thread that turns files into tables, one after the other.
//!
//! One is enough: a million rows take a tenth of a second, and until a table is there stacks
//! are finished from copies. It runs at normal priority, as on a busy host others are always.
//!
//! Each job has a time at which it is due, and the first one is taken: small files before
//! large ones, those that a stack waits for before others of their size and much larger ones,
//! but none waits for ever.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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

/// How much a table matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// It may be needed some time.
    Eager,
    /// A stack waits for it.
    Awaited,
}

/// What the compiler manages, about: a file is due when it could be done. Most processes need
/// few large ones.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// How many times as long a file has to wait that no stack waits for.
const EAGER_PATIENCE: u32 = 8;

/// How long the largest file has to wait.
const MAX_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Queue {
    /// By the time at which they are due, and their number.
    jobs: BTreeMap<(Instant, u64), Job>,
    /// Where a file's job is.
    due: HashMap<Key, (Instant, u64)>,
    /// Numbers that were given to jobs.
    numbers: u64,
    ended: bool,
}

#[derive(Debug)]
struct Job {
    key: Key,
    object: Arc<ObjectFile>,
    asked: Instant,
    /// What the compiler will take for it.
    cost: Duration,
}

impl Job {
    fn new(key: Key, object: Arc<ObjectFile>, asked: Instant, bytes: u64) -> Self {
        let cost = Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_SECOND);
        Self { key, object, asked, cost: cost.min(MAX_WAIT) }
    }

    fn due(&self, urgency: Urgency) -> Instant {
        let patience = if urgency == Urgency::Awaited { 1 } else { EAGER_PATIENCE };
        self.asked + (self.cost * patience).min(MAX_WAIT)
    }
}

impl Queue {
    fn push(&mut self, urgency: Urgency, job: Job) {
        self.numbers += 1;
        let due = (job.due(urgency), self.numbers);
        self.due.insert(job.key, due);
        self.jobs.insert(due, job);
    }

    /// Lets a job be due as early as if a stack had waited for it from the beginning.
    fn hurry(&mut self, key: Key) {
        let Some(due) = self.due.get_mut(&key) else { return };
        let Some(job) = self.jobs.remove(due) else { return };
        due.0 = job.due(Urgency::Awaited);
        self.jobs.insert(*due, job);
    }

    fn pop(&mut self) -> Option<Job> {
        let (_, job) = self.jobs.pop_first()?;
        self.due.remove(&job.key);
        Some(job)
    }
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

    /// Asks for a file's table, which must not have been asked for. False if too many wait
    /// already.
    pub(super) fn request(&self, key: Key, object: Arc<ObjectFile>, urgency: Urgency) -> bool {
        let bytes = match &object.kind {
            ObjectKind::Elf { file: Some(file) } => file.metadata().map_or(0, |data| data.len()),
            _ => 0,
        };
        let mut queue = self.shared.lock();
        if queue.jobs.len() >= MAX_JOBS {
            return false;
        }
        queue.push(urgency, Job::new(key, object, Instant::now(), bytes));
        self.shared.changed.notify_one();
        true
    }

    /// A stack waits for a table now that has been asked for.
    pub(super) fn hurry(&self, key: Key) {
        self.shared.lock().hurry(key);
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
            if let Some(job) = queue.pop() {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn key(name: u64) -> Key {
        Key::Inode(0, name, 0, 0, 0)
    }

    fn job(name: u64, asked: Instant, bytes: u64) -> Job {
        let object = ObjectFile {
            path: String::new(),
            build_id: None,
            kind: ObjectKind::Elf { file: None },
        };
        Job::new(key(name), Arc::new(object), asked, bytes)
    }

    fn order(mut queue: Queue) -> Vec<u64> {
        let name = |job: Job| match job.key {
            Key::Inode(_, name, ..) => name,
            _ => 0,
        };
        std::iter::from_fn(|| queue.pop()).map(name).collect()
    }

    #[test]
    fn small_files_come_first_and_those_that_are_awaited_before_others_of_their_size() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(Urgency::Eager, job(1, now, 500 * MIB));
        queue.push(Urgency::Eager, job(2, now, MIB));
        queue.push(Urgency::Awaited, job(3, now, 50 * MIB));
        queue.push(Urgency::Eager, job(4, now, 100 * MIB));
        queue.push(Urgency::Eager, job(5, now, MIB));
        queue.push(Urgency::Eager, job(6, now, 10 * MIB));
        queue.hurry(key(4));
        queue.hurry(key(9));
        assert_eq!(order(queue), [2, 5, 3, 6, 4, 1]);
    }

    #[test]
    fn large_file_does_not_wait_for_ever_behind_small_ones() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.push(Urgency::Eager, job(0, start, u64::MAX));
        let mut taken = Vec::new();
        for second in 1..=200 {
            let now = start + Duration::from_secs(second);
            let urgency = if second % 2 == 0 { Urgency::Awaited } else { Urgency::Eager };
            queue.push(urgency, job(second, now, 2 * MIB));
            queue.push(urgency, job(second + 1000, now, 2 * MIB));
            let Some(Job { key: Key::Inode(_, name, ..), .. }) = queue.pop() else { panic!() };
            taken.push(name);
        }
        assert!(taken[..30].iter().all(|name| *name != 0));
        assert!(taken.contains(&0), "{taken:?}");
    }
}
