//! What each process has grown by since it began, or since the agent did: kept for the moment at
//! which the kernel ends one for want of memory, when it is too late to begin to look.
//!
//! Windows are added up when they end, by process and stack; threads do not matter any more. A frame
//! refers to the ranges of its window, which go with it, so each process has ranges of its own here.
//!
//! All of it is within a bound. The kernel ends large processes, so those that have grown least
//! are forgotten first; of one process with very many stacks, the smallest become one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use everflame_agent_common::event::Kind;
use everflame_agent_common::growth::Backing;
use foldhash::fast::RandomState;

use crate::aggregate::{Frame, MappedRange, ProcessWindow, StackKey, Totals, Window};
use crate::collect::ThreadName;
use crate::object::{ObjectFile, ObjectKind};
use crate::process::Generation;

/// Memory for all processes.
pub const HISTORY_BYTES: usize = 4 << 20;

/// One process has at most this part of it.
const SHARE_OF_A_PROCESS: usize = 4;

/// What is left when something has to go: so much that the next window does not meet the bound again.
const KEPT: (usize, usize) = (3, 4);

/// What stands for the stacks that became one, in the place of a file.
pub const SMALLER_STACKS: &str = "smaller stacks";

type Map<K, V> = HashMap<K, V, RandomState>;

/// What processes have grown by.
#[derive(Debug)]
pub struct GrowthHistory {
    processes: Map<u32, Grown>,
    /// Those that were handed out: the kernel may tell of them again while they end.
    handed_out: HashSet<(u32, Generation)>,
    bytes: usize,
    max_bytes: usize,
    stats: HistoryStats,
}

/// How much there is, and what had to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryStats {
    /// Memory that it takes.
    pub bytes: u64,
    /// Processes that were forgotten to make room.
    pub evicted: u64,
    /// Stacks that became one with others.
    pub folded: u64,
}

/// What is kept of a stack.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Stack {
    memory: Option<Backing>,
    kernel: Box<[u64]>,
    user: Box<[Frame]>,
}

impl Stack {
    /// With its place in a map.
    fn bytes(&self) -> usize {
        size_of_val(&*self.kernel) + size_of_val(&*self.user) + size_of::<(Self, Totals)>()
    }
}

/// One process.
#[derive(Debug)]
struct Grown {
    generation: Generation,
    /// As it was last.
    process: ProcessWindow,
    ranges: Vec<MappedRange>,
    stacks: Map<Stack, Totals>,
    bytes: usize,
    /// What it has grown by.
    grown_bytes: u64,
}

impl Grown {
    fn new(of: &ProcessWindow) -> Self {
        Self {
            generation: of.generation,
            process: without_stacks(of),
            ranges: Vec::new(),
            stacks: Map::default(),
            bytes: size_of::<Self>(),
            grown_bytes: 0,
        }
    }

    /// Adds what a window has of it.
    fn add(&mut self, window: &ProcessWindow, ranges: &[MappedRange]) {
        self.process = without_stacks(window);
        for (key, totals) in &window.stacks {
            if key.kind != Kind::Growth {
                continue;
            }
            let user = key.user.iter().map(|frame| self.frame(*frame, ranges)).collect();
            let stack = Stack { memory: key.memory, kernel: key.kernel.clone(), user };
            self.add_stack(stack, *totals);
            self.grown_bytes = self.grown_bytes.saturating_add(totals.value);
        }
    }

    fn add_stack(&mut self, stack: Stack, totals: Totals) {
        let bytes = stack.bytes();
        let sum = self.stacks.entry(stack).or_insert_with(|| {
            self.bytes += bytes;
            Totals::default()
        });
        sum.count = sum.count.saturating_add(totals.count);
        sum.value = sum.value.saturating_add(totals.value);
    }

    /// A window's frame with the index of our own range.
    fn frame(&mut self, frame: Frame, ranges: &[MappedRange]) -> Frame {
        let range = usize::try_from(frame.range).ok().and_then(|index| ranges.get(index));
        let range = range.map_or(Frame::UNMAPPED, |range| self.range(range));
        Frame { range, address: frame.address }
    }

    /// Few: as many as a process has files.
    fn range(&mut self, range: &MappedRange) -> u32 {
        let is_same = |known: &MappedRange| {
            Arc::ptr_eq(&known.object, &range.object)
                && (known.start, known.end) == (range.start, range.end)
        };
        let index = self.ranges.iter().position(is_same).unwrap_or_else(|| {
            self.bytes += size_of::<MappedRange>();
            self.ranges.push(range.clone());
            self.ranges.len() - 1
        });
        u32::try_from(index).unwrap_or(Frame::UNMAPPED)
    }

    /// Makes one of the smallest stacks, so that the rest takes at most `max_bytes`. Returns how many
    /// they were.
    fn fold(&mut self, max_bytes: usize) -> u64 {
        let mut by_size: Vec<(Stack, Totals)> =
            std::mem::take(&mut self.stacks).into_iter().collect();
        by_size.sort_by_key(|(_, totals)| std::cmp::Reverse(totals.value));
        let of_stacks: usize = by_size.iter().map(|(stack, _)| stack.bytes()).sum();
        self.bytes -= of_stacks;
        let range =
            self.range(&MappedRange { object: smaller_stacks(&self.ranges), start: 0, end: 1 });
        let mut folded = 0;
        for (stack, totals) in by_size {
            if self.bytes + stack.bytes() <= max_bytes {
                self.add_stack(stack, totals);
                continue;
            }
            folded += 1;
            let user = Box::new([Frame { range, address: 0 }]);
            self.add_stack(Stack { memory: stack.memory, kernel: Box::default(), user }, totals);
        }
        folded
    }

    /// As a window of its own.
    fn into_window(self) -> Window {
        let mut process = self.process;
        process.stacks = self
            .stacks
            .into_iter()
            .map(|(Stack { memory, kernel, user }, totals)| {
                let key = StackKey {
                    kind: Kind::Growth,
                    tid: 0,
                    thread_name: ThreadName::default(),
                    cpu: 0,
                    kernel,
                    user,
                    wait: None,
                    memory,
                    allocator: None,
                    io: None,
                };
                (Arc::new(key), totals)
            })
            .collect();
        Window::of_processes(vec![process], self.ranges)
    }
}

impl GrowthHistory {
    /// An empty one that takes at most `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            processes: Map::default(),
            handed_out: HashSet::new(),
            bytes: 0,
            max_bytes,
            stats: HistoryStats::default(),
        }
    }

    /// Adds a window that has ended, of those processes that are alive, and forgets the others.
    pub fn add(&mut self, window: &Window, is_alive: impl Fn(u32, Generation) -> bool) {
        self.processes.retain(|pid, grown| is_alive(*pid, grown.generation));
        self.handed_out.retain(|(pid, generation)| is_alive(*pid, *generation));
        for process in &window.processes {
            if is_alive(process.pid, process.generation) {
                self.add_process(process, &window.ranges);
            }
        }
        self.bytes = self.processes.values().map(|grown| grown.bytes).sum();
        self.make_room();
    }

    /// Hands out what this process has grown by, with what the present window has of it, and forgets
    /// it. `None` if that is nothing, or was handed out already.
    pub fn take(&mut self, pid: u32, present: &Window) -> Option<Window> {
        let of_pid = present.processes.iter().filter(|process| process.pid == pid);
        if let Some(process) = of_pid.max_by_key(|process| process.generation) {
            self.add_process(process, &present.ranges);
        }
        let grown = self.processes.remove(&pid)?;
        self.bytes = self.processes.values().map(|grown| grown.bytes).sum();
        self.handed_out.insert((pid, grown.generation));
        Some(grown.into_window())
    }

    /// How much there is, and what had to go.
    pub fn stats(&self) -> HistoryStats {
        HistoryStats { bytes: self.bytes as u64, ..self.stats }
    }

    fn add_process(&mut self, process: &ProcessWindow, ranges: &[MappedRange]) {
        let ProcessWindow { pid, generation, .. } = *process;
        let has_grown = process.stacks.keys().any(|key| key.kind == Kind::Growth);
        if !has_grown || self.handed_out.contains(&(pid, generation)) {
            return;
        }
        let grown = self.processes.entry(pid).or_insert_with(|| Grown::new(process));
        if grown.generation != generation {
            // Another program since; what the former one had is gone.
            *grown = Grown::new(process);
        }
        grown.add(process, ranges);
        let max_bytes = self.max_bytes / SHARE_OF_A_PROCESS;
        if grown.bytes > max_bytes {
            self.stats.folded += grown.fold(max_bytes / KEPT.1 * KEPT.0);
        }
    }

    fn make_room(&mut self) {
        if self.bytes <= self.max_bytes {
            return;
        }
        let mut by_growth: Vec<(u64, u32)> =
            self.processes.iter().map(|(pid, grown)| (grown.grown_bytes, *pid)).collect();
        by_growth.sort_unstable();
        for (_, pid) in by_growth {
            if self.bytes <= self.max_bytes / KEPT.1 * KEPT.0 {
                return;
            }
            if let Some(grown) = self.processes.remove(&pid) {
                self.bytes -= grown.bytes;
                self.stats.evicted += 1;
            }
        }
    }
}

/// Who a process is.
fn without_stacks(of: &ProcessWindow) -> ProcessWindow {
    ProcessWindow {
        pid: of.pid,
        generation: of.generation,
        name: of.name.clone(),
        main_object: of.main_object.clone(),
        identity: Arc::clone(&of.identity),
        stacks: HashMap::default(),
        allocations: HashMap::default(),
        blocks: HashMap::default(),
        tcp: HashMap::default(),
        remotes: HashSet::new(),
        contention: HashMap::default(),
        heap: HashMap::default(),
        heap_period_bytes: 0,
        allocator: None,
        futexes: HashMap::default(),
    }
}

/// The object that stands for them, the same in one process.
fn smaller_stacks(ranges: &[MappedRange]) -> Arc<ObjectFile> {
    let known = ranges.iter().find(|range| range.object.path == SMALLER_STACKS);
    known.map_or_else(
        || {
            let path = SMALLER_STACKS.to_owned();
            Arc::new(ObjectFile { path, build_id: None, kind: ObjectKind::Opaque })
        },
        |range| Arc::clone(&range.object),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ProcessIdentity;

    const ALIVE: fn(u32, Generation) -> bool = |_, _| true;

    fn file(path: &str) -> MappedRange {
        let object = ObjectFile { path: path.to_owned(), build_id: None, kind: ObjectKind::Opaque };
        MappedRange { object: Arc::new(object), start: 0, end: 1 << 20 }
    }

    /// Growth by some addresses, all in the range `range`.
    fn process(pid: u32, range: u32, grown: &[(u64, u64)]) -> ProcessWindow {
        let key = |address, tid, kind| StackKey {
            kind,
            tid,
            thread_name: ThreadName(*b"worker\0\0\0\0\0\0\0\0\0\0"),
            cpu: 0,
            kernel: Box::new([0xffff_ffff_8100_0000]),
            user: Box::new([
                Frame { range, address },
                Frame { range: Frame::UNMAPPED, address: 7 },
            ]),
            wait: None,
            memory: Some(Backing::Anonymous),
            allocator: None,
            io: None,
        };
        let mut stacks = Map::default();
        for (address, value) in grown {
            let totals = Totals { count: value / 4096, value: *value };
            // By two threads.
            stacks.insert(Arc::new(key(*address, 1, Kind::Growth)), totals);
            stacks.insert(Arc::new(key(*address, 2, Kind::Growth)), totals);
            stacks.insert(Arc::new(key(*address, 1, Kind::Cpu)), totals);
        }
        ProcessWindow {
            pid,
            generation: Generation::default(),
            name: format!("p{pid}"),
            main_object: None,
            identity: Arc::new(ProcessIdentity::default()),
            stacks,
            allocations: Map::default(),
            blocks: Map::default(),
            tcp: Map::default(),
            remotes: HashSet::new(),
            contention: Map::default(),
            heap: Map::default(),
            heap_period_bytes: 0,
            allocator: None,
            futexes: Map::default(),
        }
    }

    fn window(processes: Vec<ProcessWindow>, ranges: &[MappedRange]) -> Window {
        Window::of_processes(processes, ranges.to_vec())
    }

    /// (path, address, bytes) of each stack, the largest first.
    fn shown(window: &Window) -> Vec<(String, u64, u64)> {
        let [process] = &window.processes[..] else { panic!("{window:?}") };
        let mut shown: Vec<_> = process
            .stacks
            .iter()
            .map(|(key, totals)| {
                let frame = key.user[0];
                let path = window.ranges[frame.range as usize].object.path.clone();
                (path, frame.address, totals.value)
            })
            .collect();
        shown.sort_by_key(|(_, _, value)| std::cmp::Reverse(*value));
        shown
    }

    #[test]
    fn windows_with_other_ranges_add_up_by_stack_over_threads() {
        let (a, b) = (file("a"), file("b"));
        let mut history = GrowthHistory::new(HISTORY_BYTES);
        history.add(&window(vec![process(1, 0, &[(10, 4096)])], &[a.clone(), b.clone()]), ALIVE);
        history.add(&window(vec![process(1, 1, &[(10, 8192)])], &[b.clone(), a.clone()]), ALIVE);
        history.add(&window(vec![process(2, 0, &[(10, 1)])], std::slice::from_ref(&b)), ALIVE);
        let present = window(vec![process(1, 0, &[(10, 1 << 20)])], &[b]);
        let taken = history.take(1, &present).unwrap();
        assert_eq!(
            shown(&taken),
            [("b".to_owned(), 10, 2 << 20), ("a".to_owned(), 10, 2 * (4096 + 8192))]
        );
        let process = &taken.processes[0];
        assert_eq!((process.pid, process.name.as_str()), (1, "p1"));
        assert!(process.stacks.keys().all(|key| key.tid == 0 && key.kind == Kind::Growth));

        // Told of again while it ends.
        assert!(history.take(1, &present).is_none());
        history.add(&present, ALIVE);
        assert!(history.take(1, &present).is_none());
        assert!(history.take(3, &present).is_none());
    }

    #[test]
    fn process_that_is_gone_is_forgotten() {
        let mut history = GrowthHistory::new(HISTORY_BYTES);
        let ranges = [file("a")];
        let both = || window(vec![process(1, 0, &[(1, 1)]), process(2, 0, &[(1, 1)])], &ranges);
        history.add(&both(), ALIVE);
        history.add(&both(), |pid, _| pid == 2);
        let nothing = Window::default();
        assert!(history.take(1, &nothing).is_none());
        assert_eq!(shown(&history.take(2, &nothing).unwrap()), [("a".to_owned(), 1, 4)]);
        assert_eq!(history.stats(), HistoryStats::default());
    }

    #[test]
    fn processes_that_have_grown_least_make_room() {
        const MAX: usize = 256 << 10;
        let mut history = GrowthHistory::new(MAX);
        let ranges = [file("a")];
        for round in 0..4 {
            let stacks: Vec<(u64, u64)> = (0..20).map(|at| (round * 20 + at, 4096)).collect();
            let of_all = (1..=500).map(|pid| {
                let grown = stacks.iter().map(|(at, bytes)| (*at, bytes * u64::from(pid)));
                process(pid, 0, &grown.collect::<Vec<_>>())
            });
            history.add(&window(of_all.collect(), &ranges), ALIVE);
            let stats = history.stats();
            assert!(stats.bytes <= MAX as u64, "{stats:?}");
            assert!(stats.bytes > MAX as u64 / 4, "{stats:?}");
            assert!(stats.evicted > 0, "{stats:?}");
        }
        let taken = history.take(500, &Window::default()).unwrap();
        let bytes: u64 = shown(&taken).iter().map(|(_, _, bytes)| bytes).sum();
        assert_eq!(bytes, 4 * 20 * 2 * 4096 * 500, "the largest one is whole");
        assert!(history.take(1, &Window::default()).is_none());
    }

    #[test]
    fn smallest_stacks_of_a_process_become_one_and_their_sum_stays() {
        const MAX: usize = 256 << 10;
        let mut history = GrowthHistory::new(MAX);
        let ranges = [file("a")];
        let stacks: Vec<(u64, u64)> = (1..=5000).map(|at| (at, at * 4096)).collect();
        for _ in 0..2 {
            history.add(&window(vec![process(1, 0, &stacks)], &ranges), ALIVE);
            let stats = history.stats();
            assert!(stats.bytes as usize <= MAX / SHARE_OF_A_PROCESS + 1024, "{stats:?}");
            assert!(stats.folded > 1000 && stats.evicted == 0, "{stats:?}");
        }
        let shown = shown(&history.take(1, &Window::default()).unwrap());
        let truth: u64 = stacks.iter().map(|(_, bytes)| 4 * bytes).sum();
        assert_eq!(shown.iter().map(|(_, _, bytes)| bytes).sum::<u64>(), truth);
        assert_eq!(shown[0].0, SMALLER_STACKS);
        assert_eq!(shown[1], ("a".to_owned(), 5000, 4 * 5000 * 4096));
    }
}
