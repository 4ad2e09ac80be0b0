//! Adds up equal stacks of one window of time.
//!
//! This is where an address of a process becomes a place in a file, with the mappings as they
//! were at the time of the sample; from here on nothing depends on the process. No I/O.

mod block;
mod heap;
mod tcp;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use everflame_agent_common::allocation::{Allocation, Allocator};
use everflame_agent_common::event::Kind;
use everflame_agent_common::growth::Backing as MemoryBacking;
use everflame_agent_common::lock::{LockKey, Release, is_of_kernel};
use everflame_agent_common::unwind::Stop;
use everflame_agent_common::wait::{FLAG_RUN_QUEUE, Wait};
use foldhash::fast::RandomState;

use crate::collect::{Sample, ThreadName};
use crate::contention::{Contention, LockWait};
use crate::identity::ProcessIdentity;
use crate::live::Weights;
use crate::object::ObjectFile;
use crate::process::{Backing, DataPlace, Generation, Process};
use crate::wait::FUTEX_WAIT;

pub use block::{BlockKey, BlockTotals, DiskName};
pub use heap::HeapTotals;
pub use tcp::{MAX_REMOTES, Remote, TcpKey};

/// Memory of the stacks in one window. A window that reaches this is closed early, as a
/// short window loses nothing.
const MAX_STACK_BYTES: usize = 16 << 20;

type Map<K, V> = HashMap<K, V, RandomState>;

/// A frame of user code: an address in one of the window's [`MappedRange`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Index of the range, or [`Frame::UNMAPPED`].
    pub range: u32,
    /// For a file, the offset in it; otherwise the address in the process. Of a caller this
    /// is the byte before the return address, which lies within the call.
    pub address: u64,
}

impl Frame {
    /// The range of an address that lies in no known mapping.
    pub const UNMAPPED: u32 = u32::MAX;
}

/// A stretch of a file that some process executes, or of a process's generated code.
#[derive(Clone, Debug)]
pub struct MappedRange {
    /// What it is made of.
    pub object: Arc<ObjectFile>,
    /// Where it begins: an offset in the file, or an address for generated code.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
}

/// What samples are added up by, within a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StackKey {
    /// The profile.
    pub kind: Kind,
    /// Thread id; 0 for what is summed over threads.
    pub tid: u32,
    /// The thread's name.
    pub thread_name: ThreadName,
    /// Where it ran; 0 for waits.
    pub cpu: u32,
    /// Kernel addresses, leaf first.
    pub kernel: Box<[u64]>,
    /// User frames, leaf first.
    pub user: Box<[Frame]>,
    /// Of waits: what for.
    pub wait: Option<WaitKey>,
    /// Of growth: of what.
    pub memory: Option<MemoryBacking>,
    /// Of allocations: whose function was called.
    pub allocator: Option<Allocator>,
    /// Of requests to disks, and of what happens to TCP connections.
    pub io: Option<IoKey>,
}

/// What events of I/O are told apart by, beside their stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoKey {
    /// Requests to disks: which, and how long they took.
    Block(BlockKey),
    /// TCP connections: which, what happened, and how long that took.
    Tcp(TcpKey),
}

impl StackKey {
    /// Memory that it takes.
    fn bytes(&self) -> usize {
        size_of_val(&*self.kernel) + size_of_val(&*self.user) + size_of::<Self>()
    }
}

/// What waits are told apart by, beside their stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WaitKey {
    /// The kernel's `prev_state`, or `PREEMPTED`.
    pub state: u32,
    /// The thread was ready to run and waited for a CPU.
    pub is_run_queue: bool,
    /// The system call that it was in; -1 for none.
    pub syscall: i64,
    /// The address of the futex that it was on, or released; 0 for none.
    pub futex: u64,
    /// The same of a lock of the kernel.
    pub kernel_lock: u64,
    /// What the kernel says of that lock; see [`LockFlags`].
    ///
    /// [`LockFlags`]: everflame_agent_common::lock::LockFlags
    pub kernel_lock_flags: u32,
    /// The operation of a `futex` call, with its flags.
    pub operation: u32,
    /// Of waits for a lock: the greatest power of two that its length is not below, in
    /// nanoseconds. Otherwise 0.
    pub length: u64,
}

impl WaitKey {
    fn of(wait: &Wait) -> Self {
        let is_futex = [libc::SYS_futex, FUTEX_WAIT].contains(&wait.syscall);
        let futex = if is_futex { wait.arguments[0] } else { 0 };
        let is_run_queue = wait.flags & FLAG_RUN_QUEUE != 0;
        let length_ns = wait.end_ns.saturating_sub(wait.start_ns);
        let kernel_lock = if is_run_queue { 0 } else { wait.kernel_lock };
        let has_length = (futex != 0 || kernel_lock != 0) && !is_run_queue && length_ns > 0;
        let operation = if wait.syscall == libc::SYS_futex { wait.arguments[1] } else { 0 };
        Self {
            state: wait.state,
            is_run_queue,
            syscall: wait.syscall,
            futex,
            kernel_lock,
            kernel_lock_flags: if kernel_lock == 0 { 0 } else { wait.kernel_lock_flags },
            operation: operation as u32,
            length: if has_length { 1 << length_ns.ilog2() } else { 0 },
        }
    }

    fn of_release(release: &Release) -> Self {
        let key = Self { syscall: -1, ..Self::default() };
        if is_of_kernel(release.address) {
            let kernel_lock_flags = release.kernel_lock_flags;
            Self { kernel_lock: release.address, kernel_lock_flags, ..key }
        } else {
            Self { futex: release.address, ..key }
        }
    }

    /// The address of the lock that it was for, or released; 0 for none. The kernel's has
    /// precedence: a futex call may have to wait for one of those.
    pub fn lock(&self) -> u64 {
        if self.kernel_lock == 0 { self.futex } else { self.kernel_lock }
    }
}

/// Sums of equal samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of events that the samples stand for.
    pub count: u64,
    /// Sum of their values, in the unit of the kind.
    pub value: u64,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.value = self.value.saturating_add(other.value);
    }
}

/// Sums of equal samples of allocations, each scaled by how likely it was. They have fractions, which would
/// be lost in each sample, not in sums.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allocated {
    /// Objects that the samples stand for.
    pub objects: f64,
    /// Their bytes.
    pub bytes: f64,
}

impl Allocated {
    fn add(&mut self, Allocation { size, period, .. }: Allocation) {
        // An object of 0 bytes is not sampled.
        if size > 0 {
            let Weights { objects, bytes } = Weights::of(size, period);
            self.objects += objects;
            self.bytes += bytes;
        }
    }
}

/// The samples of one process in one window.
#[derive(Debug)]
pub struct ProcessWindow {
    /// Process id.
    pub pid: u32,
    /// Which program of this id it is.
    pub generation: Generation,
    /// The main thread's name, as it was last.
    pub name: String,
    /// The file of its executable.
    pub main_object: Option<Arc<ObjectFile>>,
    /// Who it is.
    pub identity: Arc<ProcessIdentity>,
    /// Its stacks.
    pub stacks: Map<Arc<StackKey>, Totals>,
    /// Stacks of allocations.
    pub allocations: Map<Arc<StackKey>, Allocated>,
    /// Requests to disks that it has made.
    pub blocks: Map<Arc<StackKey>, BlockTotals>,
    /// What has happened to its TCP connections.
    pub tcp: Map<Arc<StackKey>, Totals>,
    /// Their other ends, as far as they are told apart.
    pub remotes: HashSet<[u64; 2]>,
    /// Its waits for locks, divided among the releases that ended them.
    pub contention: Map<(Arc<StackKey>, Option<Arc<StackKey>>), Totals>,
    /// What was allocated on its live heap, and what is there.
    pub heap: Map<Arc<[Frame]>, HeapTotals>,
    /// What its objects were last sampled with: one in so many bytes.
    pub heap_period_bytes: u64,
    /// Whose allocator it uses, where that is known.
    pub allocator: Option<Allocator>,
    /// Where its futexes are in files, by their addresses; `None` for those on its heap and
    /// its stacks.
    pub futexes: Map<u64, Option<DataPlace>>,
}

impl ProcessWindow {
    /// All stacks, but those of its live heap.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<StackKey>> {
        let stacks = self.stacks.keys().chain(self.allocations.keys());
        stacks.chain(self.blocks.keys()).chain(self.tcp.keys())
    }

    /// The user frames of all stacks.
    pub fn frames(&self) -> impl Iterator<Item = &Frame> {
        let of_heap = self.heap.keys().flat_map(|stack| stack.iter());
        self.keys().flat_map(|key| key.user.iter()).chain(of_heap)
    }
}

/// Everything that was sampled in a stretch of time.
#[derive(Debug, Default)]
pub struct Window {
    /// One for each program that was sampled.
    pub processes: Vec<ProcessWindow>,
    /// What frames refer to.
    pub ranges: Vec<MappedRange>,
    /// Samples taken in.
    pub samples: u64,
    /// Of these, samples of waits.
    pub waits: u64,
    /// And samples of releases of locks, and of CPUs that spin for one.
    pub locks: u64,
    /// And samples of growth of memory, and of allocations.
    pub growth: u64,
    /// And requests to disks, and files that were made durable.
    pub blocks: u64,
    /// And events of TCP connections.
    pub connections: u64,
    /// And sampled objects.
    pub objects: u64,
    /// User stacks by why they end; indexed by [`Stop`].
    pub user_stops: [u64; Stop::ALL.len()],
    /// Kernel stacks by why they end.
    pub kernel_stops: [u64; Stop::ALL.len()],
    stack_bytes: usize,
}

impl Window {
    /// Samples of CPUs: all that are nothing else.
    pub fn cpu_samples(&self) -> u64 {
        let io = self.blocks + self.connections;
        self.samples - self.waits - self.locks - self.growth - io - self.objects
    }

    /// What processes have, whatever was sampled when.
    pub fn of_processes(processes: Vec<ProcessWindow>, ranges: Vec<MappedRange>) -> Self {
        Self { processes, ranges, ..Self::default() }
    }

    /// Whether it should be closed before its time.
    pub fn is_full(&self) -> bool {
        self.stack_bytes >= MAX_STACK_BYTES
    }
}

/// Fills one window after the other.
#[derive(Debug, Default)]
pub struct Aggregator {
    window: Window,
    contention: Contention,
    process_index: Map<(u32, Generation), usize>,
    /// By object and by the range's start, so that a file that many map is one range.
    range_index: Map<(usize, u64, u64), u32>,
}

impl Aggregator {
    /// Adds a sample of `process`. In each window `identify` is asked once for each process,
    /// and `locate` once for each futex.
    pub fn add(
        &mut self,
        mut sample: Sample,
        process: &mut Process,
        identify: impl FnOnce(&mut Process) -> Arc<ProcessIdentity>,
        locate: impl FnOnce(&mut Process, u64) -> Option<DataPlace>,
    ) {
        self.count(&sample);
        self.window.waits += u64::from(matches!(sample.kind, Kind::OffCpu | Kind::Waiting));
        self.window.locks += u64::from(matches!(sample.kind, Kind::Release | Kind::Spinning));
        self.window.growth += u64::from(matches!(sample.kind, Kind::Growth | Kind::Allocation));
        let key = self.key(&mut sample, process);
        let index = self.process(sample.pid, process, identify);
        let bytes = key.bytes() + size_of::<Totals>();
        let known = &mut self.window.processes[index];
        if known.name != process.name {
            known.name.clone_from(&process.name);
        }
        if let Some(allocation) = sample.allocation {
            let key = Arc::new(key);
            if !known.allocations.contains_key(&key) {
                self.window.stack_bytes += bytes;
            }
            return known.allocations.entry(key).or_default().add(allocation);
        }
        let totals = Totals { count: sample.count, value: sample.value };
        let key = match known.stacks.get_key_value(&key) {
            Some((known, _)) => Arc::clone(known),
            None => {
                self.window.stack_bytes += bytes;
                Arc::new(key)
            }
        };
        known.stacks.entry(Arc::clone(&key)).or_default().add(totals);
        if let Some(WaitKey { futex: futex @ 1.., is_run_queue: false, .. }) = key.wait {
            known.futexes.entry(futex).or_insert_with(|| {
                self.window.stack_bytes += size_of::<(u64, Option<DataPlace>)>();
                locate(process, futex)
            });
        }
        if let Some(release) = sample.release {
            let lock = LockKey::new(release.address, release.pid);
            self.window.stack_bytes += size_of::<(u64, Arc<StackKey>)>();
            self.contention.release(lock, release.time_ns, key);
        } else if let Some(wait) = sample.wait
            && key.kind == Kind::OffCpu
            && let Some(address @ 1..) =
                key.wait.filter(|wait| !wait.is_run_queue).map(|w| w.lock())
        {
            // One that was reported in part begins where that part ended.
            let begin_ns = wait.start_ns.max(wait.end_ns.saturating_sub(sample.value));
            let lock = LockKey::new(address, sample.pid);
            let (waiter, end_ns) = (key, wait.end_ns);
            let process = index;
            self.window.stack_bytes += size_of::<LockWait>();
            self.contention.wait(LockWait { process, lock, waiter, begin_ns, end_ns, totals });
        }
    }

    /// Whether the window should be closed before its time.
    pub fn is_full(&self) -> bool {
        self.window.is_full()
    }

    /// The window as it is now.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Samples in the window.
    pub fn samples(&self) -> u64 {
        self.window.samples
    }

    /// Hands out the window and begins the next.
    pub fn take(&mut self) -> Window {
        self.process_index.clear();
        self.range_index.clear();
        let mut window = std::mem::take(&mut self.window);
        for part in std::mem::take(&mut self.contention).divide() {
            let parts = &mut window.processes[part.process].contention;
            parts.entry((part.waiter, part.releaser)).or_default().add(part.totals);
        }
        window
    }

    fn count(&mut self, sample: &Sample) {
        self.window.samples += 1;
        self.window.user_stops[sample.user_stop as usize] += 1;
        self.window.kernel_stops[sample.kernel_stop as usize] += 1;
    }

    /// What a sample is added up by. Takes its stack in the kernel away.
    fn key(&mut self, sample: &mut Sample, process: &mut Process) -> StackKey {
        // Only the leaf is an address of an instruction that runs; all others are where a
        // call returns to, which may be the first byte of the next function.
        let mut kernel = std::mem::take(&mut sample.kernel);
        kernel.iter_mut().skip(1).for_each(|address| *address = address.wrapping_sub(1));
        StackKey {
            // One that goes on is a part of one that ends in another window.
            kind: if sample.kind == Kind::Waiting { Kind::OffCpu } else { sample.kind },
            wait: match (&sample.wait, &sample.release) {
                (Some(wait), _) => Some(WaitKey::of(wait)),
                (None, release) => release.as_ref().map(WaitKey::of_release),
            },
            memory: sample.memory,
            allocator: sample.allocation.map(|allocation| allocation.allocator),
            io: None,
            tid: sample.tid,
            thread_name: sample.thread_name,
            // A wait is on none.
            cpu: if sample.kind == Kind::Cpu { sample.cpu } else { 0 },
            kernel,
            user: self.frames(sample, process),
        }
    }

    fn process(
        &mut self,
        pid: u32,
        process: &mut Process,
        identify: impl FnOnce(&mut Process) -> Arc<ProcessIdentity>,
    ) -> usize {
        let key = (pid, process.generation);
        if let Some(index) = self.process_index.get(&key) {
            return *index;
        }
        let identity = identify(process);
        self.window.processes.push(ProcessWindow {
            pid,
            generation: process.generation,
            name: process.name.clone(),
            main_object: process.main_object().cloned(),
            identity,
            stacks: Map::default(),
            allocations: Map::default(),
            blocks: Map::default(),
            tcp: Map::default(),
            remotes: HashSet::new(),
            contention: Map::default(),
            heap: Map::default(),
            heap_period_bytes: 0,
            allocator: None,
            futexes: Map::default(),
        });
        let index = self.window.processes.len() - 1;
        self.process_index.insert(key, index);
        index
    }

    /// The user frames of a sample, leaf first.
    fn frames(&mut self, sample: &Sample, process: &mut Process) -> Box<[Frame]> {
        let addresses = sample.user.iter().enumerate();
        addresses.map(|(depth, &avma)| self.frame(sample.pid, process, avma, depth == 0)).collect()
    }

    fn frame(&mut self, pid: u32, process: &mut Process, avma: u64, leaf: bool) -> Frame {
        let avma = if leaf { avma } else { avma.wrapping_sub(1) };
        let Some(mapping) = process.mappings.find(avma) else {
            return Frame { range: Frame::UNMAPPED, address: avma };
        };
        let (start_avma, end_avma) = (mapping.start_avma, mapping.end_avma);
        match &mapping.backing {
            Backing::Object(object) => {
                let start = mapping.file_offset;
                let end = start.saturating_add(end_avma - start_avma);
                let address = mapping.offset_of(avma);
                let object = Arc::clone(object);
                Frame { range: self.range(object, start, end), address }
            }
            Backing::Anonymous => {
                let object = process.jit_object(pid);
                Frame { range: self.range(object, start_avma, end_avma), address: avma }
            }
        }
    }

    fn range(&mut self, object: Arc<ObjectFile>, start: u64, end: u64) -> u32 {
        let key = (Arc::as_ptr(&object).addr(), start, end);
        let ranges = &mut self.window.ranges;
        *self.range_index.entry(key).or_insert_with(|| {
            ranges.push(MappedRange { object, start, end });
            u32::try_from(ranges.len() - 1).unwrap_or(Frame::UNMAPPED)
        })
    }
}
