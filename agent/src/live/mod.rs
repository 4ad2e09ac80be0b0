//! The live heap: which sampled objects each process holds, since when, and whose stack allocated them.
//!
//! Objects outlive the windows that they were allocated in, so nothing here refers to a window:
//! frames are places in files of a table of this module's own.
//!
//! A child of fork holds copies of what its parent holds, so it begins with a copy of its parent's
//! table, which is shared until one of the two changes. When a process becomes another program,
//! or ends, its objects are gone.
//!
//! Memory is bounded: what finds no room is counted, and is missing in what processes hold.

mod change;
mod stacks;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use everflame_agent_common::live::Allocated;
use foldhash::fast::RandomState;

use crate::aggregate::{Frame, HeapTotals, MappedRange};
use crate::process::Generation;
use stacks::Stacks;

pub(crate) use change::HeapChange;

type Map<K, V> = HashMap<K, V, RandomState>;

/// What all heaps may take: some 300 000 objects, less their stacks.
const MAX_BYTES: usize = 32 << 20;

/// What an object takes in a table, on average.
const OBJECT_BYTES: usize = 96;

/// Objects that are remembered for a moment when they have ended, as a `realloc` that fails
/// brings them back.
const REMEMBERED: usize = 64;

/// Weights of a sampled object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Objects that it stands for.
    pub objects: f64,
    /// Their bytes.
    pub bytes: f64,
}

impl Weights {
    /// ```text
    /// 1 / (1 - exp(-size / period))
    /// ```
    pub fn of(size: u64, period: u64) -> Self {
        let size = size.max(1) as f64;
        let objects = 1.0 / -f64::exp_m1(-size / period.max(1) as f64);
        Self { objects, bytes: objects * size }
    }
}

/// A sampled object that is there.
#[derive(Clone, Debug)]
struct Object {
    /// Tells it apart from others at the same address.
    number: u64,
    /// Empty as long as its stack is being walked; it may be shared with a copy of the process by then.
    stack: OnceLock<Arc<[Frame]>>,
    weights: Weights,
    /// When it was allocated, on CLOCK_MONOTONIC.
    since_ns: u64,
}

/// What tells one object from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectId {
    pid: u32,
    generation: Generation,
    address: u64,
    number: u64,
}

/// The objects of one program.
#[derive(Debug)]
struct Heap {
    generation: Generation,
    /// By address. Shared with processes that are copies of this one, or that it is a copy of.
    objects: Arc<Map<u64, Object>>,
}

impl Heap {
    /// Objects that nobody else shares.
    fn own(&self) -> usize {
        if Arc::strong_count(&self.objects) == 1 { self.objects.len() } else { 0 }
    }
}

/// What is not known of live heaps, and how large what is known is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveStats {
    /// Sampled objects that are there.
    pub objects: usize,
    /// Processes that hold them.
    pub heaps: usize,
    /// Memory for them.
    pub bytes: usize,
    /// Objects for which there was no room, here or in the table of their process.
    pub refused: u64,
    /// Ends of objects that are not known: allocated before anybody looked, or refused.
    pub unknown_ends: u64,
}

/// The live heaps of all processes.
#[derive(Debug)]
pub struct LiveHeaps {
    by_pid: Map<u32, Heap>,
    stacks: Stacks,
    /// Of all processes, what is shared counted once.
    objects: usize,
    max_bytes: usize,
    /// What stacks took when those without objects were last forgotten.
    swept_bytes: usize,
    numbers: u64,
    ended: VecDeque<(ObjectId, Object)>,
    refused: u64,
    unknown_ends: u64,
}

impl Default for LiveHeaps {
    fn default() -> Self {
        Self::with_limit(MAX_BYTES)
    }
}

impl LiveHeaps {
    fn with_limit(max_bytes: usize) -> Self {
        Self {
            by_pid: Map::default(),
            stacks: Stacks::default(),
            objects: 0,
            max_bytes,
            swept_bytes: 0,
            numbers: 0,
            ended: VecDeque::new(),
            refused: 0,
            unknown_ends: 0,
        }
    }

    /// Takes note of a new object, whose stack is told of by [`Self::set_stack`]. `None` if it
    /// cannot be followed.
    pub fn allocated(
        &mut self,
        (pid, generation): (u32, Generation),
        time_ns: u64,
        allocated: &Allocated,
    ) -> Option<ObjectId> {
        if !allocated.will_be_freed() {
            self.refused += 1;
            return None;
        }
        let address = allocated.address;
        self.numbers += 1;
        let id = ObjectId { pid, generation, address, number: self.numbers };
        let weights = Weights::of(allocated.size, allocated.period);
        let object =
            Object { number: id.number, stack: OnceLock::new(), weights, since_ns: time_ns };
        self.insert(id, object).then_some(id)
    }

    /// Says where an object was allocated, if it is there still. `ranges` are those of the frames.
    pub fn set_stack(&mut self, id: ObjectId, frames: &[Frame], ranges: &[MappedRange]) {
        let Some(heap) = self.by_pid.get(&id.pid).filter(|heap| heap.generation == id.generation)
        else {
            return;
        };
        if let Some(object) = heap.objects.get(&id.address).filter(|it| it.number == id.number) {
            object.stack.get_or_init(|| self.stacks.intern(frames, ranges));
        }
    }

    /// Takes note of an object's end.
    pub fn freed(&mut self, (pid, generation): (u32, Generation), address: u64) {
        let heap = self.by_pid.get(&pid).filter(|heap| heap.generation == generation);
        if !heap.is_some_and(|heap| heap.objects.contains_key(&address)) {
            self.unknown_ends += 1;
            return;
        }
        let Some(object) = self.objects_mut(pid).and_then(|objects| objects.remove(&address))
        else {
            return;
        };
        self.objects -= 1;
        let number = object.number;
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((ObjectId { pid, generation, address, number }, object));
    }

    /// Takes an object's end back.
    pub fn restored(&mut self, (pid, generation): (u32, Generation), allocated: &Allocated) {
        let is_it = |(id, _): &(ObjectId, Object)| {
            (id.pid, id.generation, id.address) == (pid, generation, allocated.address)
        };
        let at = self.ended.iter().rposition(is_it);
        let Some((id, object)) = at.and_then(|at| self.ended.remove(at)) else {
            // One of those whose end was not known either.
            return;
        };
        if allocated.will_be_freed() {
            self.insert(id, object);
        } else {
            self.refused += 1;
        }
    }

    /// A process has become a copy of another one.
    pub fn forked(&mut self, child: (u32, Generation), parent: (u32, Generation)) {
        self.ended(child.0);
        let Some(heap) = self.by_pid.get(&parent.0) else { return };
        if heap.generation == parent.1 && !heap.objects.is_empty() {
            let objects = Arc::clone(&heap.objects);
            self.by_pid.insert(child.0, Heap { generation: child.1, objects });
        }
    }

    /// A process holds nothing any more.
    pub fn ended(&mut self, pid: u32) {
        if let Some(heap) = self.by_pid.remove(&pid) {
            self.objects -= heap.own();
            self.ended.retain(|(id, _)| id.pid != pid);
        }
    }

    /// Whether anything is known of a process.
    pub fn has(&self, pid: u32) -> bool {
        self.by_pid.contains_key(&pid)
    }

    /// The programs that hold objects.
    pub fn programs(&self) -> Vec<(u32, Generation)> {
        let mut programs: Vec<_> =
            self.by_pid.iter().map(|(pid, heap)| (*pid, heap.generation)).collect();
        programs.sort_unstable();
        programs
    }

    /// What a process holds at `now_ns`, by stack. Objects whose stacks are not known yet are left out.
    pub fn held(&self, pid: u32, now_ns: u64) -> Vec<(Arc<[Frame]>, HeapTotals)> {
        let Some(heap) = self.by_pid.get(&pid) else { return Vec::new() };
        // Equal stacks are one allocation.
        let mut sums: Map<usize, (Arc<[Frame]>, HeapTotals)> = Map::default();
        for object in heap.objects.values() {
            let Some(stack) = object.stack.get() else { continue };
            let (_, totals) = sums
                .entry(stack.as_ptr().addr())
                .or_insert_with(|| (Arc::clone(stack), HeapTotals::default()));
            totals.add(&HeapTotals {
                held_objects: object.weights.objects,
                held_bytes: object.weights.bytes,
                oldest_ns: now_ns.saturating_sub(object.since_ns).max(1),
                ..HeapTotals::default()
            });
        }
        sums.into_values().collect()
    }

    /// A frame's place. Frames of [`Self::held`] have one unless they lie in no known mapping.
    pub fn range(&self, frame: Frame) -> Option<&MappedRange> {
        self.stacks.range(frame)
    }

    /// Forgets stacks that nothing was allocated by that is there still.
    pub fn collect(&mut self) {
        self.stacks.collect();
        self.swept_bytes = self.stacks.bytes();
    }

    /// What is not known, and how large what is known is.
    pub fn stats(&self) -> LiveStats {
        LiveStats {
            objects: self.objects,
            heaps: self.by_pid.len(),
            bytes: self.bytes(),
            refused: self.refused,
            unknown_ends: self.unknown_ends,
        }
    }

    fn bytes(&self) -> usize {
        self.objects * OBJECT_BYTES + self.stacks.bytes()
    }

    /// False if there is no room.
    fn insert(&mut self, id: ObjectId, object: Object) -> bool {
        // Not for each object of a table that stays full: to look through all stacks takes milliseconds.
        let is_worth_it = self.stacks.bytes() > self.swept_bytes + self.max_bytes / 16;
        if self.bytes() + OBJECT_BYTES > self.max_bytes && is_worth_it {
            self.collect();
        }
        if self.bytes() + OBJECT_BYTES > self.max_bytes {
            self.refused += 1;
            return false;
        }
        let known = self.by_pid.get(&id.pid);
        if known.is_none_or(|heap| heap.generation != id.generation) {
            self.ended(id.pid);
            let objects = Arc::default();
            self.by_pid.insert(id.pid, Heap { generation: id.generation, objects });
        }
        let Some(objects) = self.objects_mut(id.pid) else {
            self.refused += 1;
            return false;
        };
        // If there is one at the same address, it has ended without a word.
        if objects.insert(id.address, object).is_none() {
            self.objects += 1;
        }
        true
    }

    /// The objects of a process, to be changed: so they are copied if they are shared. Without room for the
    /// copy the process is not followed any more.
    fn objects_mut(&mut self, pid: u32) -> Option<&mut Map<u64, Object>> {
        let heap = self.by_pid.get(&pid)?;
        let shared = heap.objects.len() - heap.own();
        if shared > 0 && self.bytes() + shared * OBJECT_BYTES > self.max_bytes {
            self.refused += shared as u64;
            self.ended(pid);
            return None;
        }
        self.objects += shared;
        self.by_pid.get_mut(&pid).map(|heap| Arc::make_mut(&mut heap.objects))
    }
}

#[cfg(test)]
mod tests;
