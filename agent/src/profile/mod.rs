//! Turns a window of stacks into pprof profiles: one for each kind and process.
//!
//! Addresses in the profiles are normalised: the location of a frame in a file has the
//! offset in that file as its address, and its mapping begins at that same offset, so equal
//! frames are equal on every host and in every process. Kernel addresses and those of
//! generated code stay as they are. Frames that have no symbol keep mapping, build id and
//! address, to be resolved later.

mod block;
mod heap;
mod locks;
mod memory;
mod tcp;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use everflame_agent_common::event::Kind;
use everflame_profile::kind::Kind as ProfileKind;
use everflame_profile::pprof;
use everflame_profile::{
    FunctionId, FunctionInfo, LabelValue, LocationId, MappingId, MappingInfo, ProfileBuilder,
};
use foldhash::fast::RandomState;

use crate::aggregate::{Frame, MappedRange, ProcessWindow, StackKey, Totals, Window};
use crate::object::{BuildId, ObjectFile, ObjectKind};
use crate::process::{DataPlace, kernel_build_id};
use crate::symbolize::{Line, Symbolizer};
use crate::wait::{self, scheduler_frames, tracepoint_frames};

pub use locks::{NOT_RELEASED, RELEASED_BY, Side};

type Map<K, V> = HashMap<K, V, RandomState>;

/// Kernel code lies in the upper half of the address space on every architecture.
const KERNEL_START: u64 = 1 << 63;
const KERNEL_NAME: &str = "[kernel.kallsyms]";

/// What all profiles of a window have in common.
#[derive(Clone, Copy, Debug)]
pub struct WindowTime {
    /// Begin, in nanoseconds since the Unix epoch.
    pub start_unix_ns: i64,
    /// Length in nanoseconds.
    pub duration_ns: i64,
    /// What a CPU sample stands for, in nanoseconds.
    pub cpu_period_ns: i64,
    /// How much waiting a sample stands for, in nanoseconds.
    pub wait_period_ns: i64,
    /// How much memory a sample stands for, in bytes.
    pub alloc_period_bytes: i64,
    /// Whether samples of live heaps say how old their oldest object is. That makes the same stack another
    /// sample in each window, so it is for recordings.
    pub has_ages: bool,
}

/// The profile of one process.
#[derive(Debug)]
pub struct ProcessProfile {
    /// What was measured.
    pub kind: ProfileKind,
    /// What all its samples have in common, sorted by name.
    pub labels: Vec<(String, String)>,
    /// The profile.
    pub profile: pprof::Profile,
}

/// Frames of a window by whether they have a symbol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameStats {
    /// Kernel frames: (with a symbol, without).
    pub kernel: (u64, u64),
    /// Frames in files.
    pub file: (u64, u64),
    /// Frames in generated code.
    pub jit: (u64, u64),
    /// Frames in memory that no mapping was known for.
    pub unmapped: u64,
}

/// The symbols of every frame in a window.
#[derive(Debug, Default)]
pub struct Symbols {
    kernel: Map<u64, Arc<[Line]>>,
    user: Map<Frame, Arc<[Line]>>,
    /// Names of data, by object and address in it.
    data: Map<(usize, u64), Arc<str>>,
    /// Distinct frames.
    pub stats: FrameStats,
}

impl Symbols {
    /// Looks every distinct frame of the window up once.
    pub fn resolve(window: &Window, symbolizer: &mut Symbolizer) -> Self {
        let mut symbols = Self::default();
        let mut user: Vec<Vec<u64>> = vec![Vec::new(); window.ranges.len()];
        for key in window.processes.iter().flat_map(ProcessWindow::keys) {
            for &address in &key.kernel {
                symbols.kernel.entry(address).or_insert_with(|| Arc::from([]));
            }
        }
        for &frame in window.processes.iter().flat_map(ProcessWindow::frames) {
            let addresses = usize::try_from(frame.range).ok().and_then(|i| user.get_mut(i));
            if let std::collections::hash_map::Entry::Vacant(entry) = symbols.user.entry(frame) {
                entry.insert(Arc::from([]));
                match addresses {
                    Some(addresses) => addresses.push(frame.address),
                    None => symbols.stats.unmapped += 1,
                }
            }
        }
        let kernel: Vec<u64> = symbols.kernel.keys().copied().collect();
        for (address, lines) in kernel.iter().zip(symbolizer.kernel(&kernel)) {
            tally(&mut symbols.stats.kernel, &lines);
            symbols.kernel.insert(*address, lines);
        }
        for (index, (range, addresses)) in window.ranges.iter().zip(user).enumerate() {
            let resolved = match &range.object.kind {
                ObjectKind::Jit(process) => symbolizer.jit(process, &addresses),
                _ => symbolizer.object(&range.object, &addresses),
            };
            let counted = match &range.object.kind {
                ObjectKind::Jit(_) => &mut symbols.stats.jit,
                _ => &mut symbols.stats.file,
            };
            for (address, lines) in addresses.into_iter().zip(resolved) {
                tally(counted, &lines);
                let range = u32::try_from(index).unwrap_or(Frame::UNMAPPED);
                symbols.user.insert(Frame { range, address }, lines);
            }
        }
        symbols.resolve_data(window, symbolizer);
        symbols
    }

    /// Looks up what the futexes of the window are called.
    fn resolve_data(&mut self, window: &Window, symbolizer: &mut Symbolizer) {
        let mut by_object: Map<usize, (&Arc<ObjectFile>, Vec<u64>)> = Map::default();
        let futexes = window.processes.iter().flat_map(|process| process.futexes.values());
        for place in futexes.flatten() {
            let (object, _) = data_key(place);
            by_object.entry(object).or_insert((&place.object, Vec::new())).1.push(place.svma);
        }
        for (key, (object, mut svmas)) in by_object {
            svmas.sort_unstable();
            svmas.dedup();
            for (svma, name) in svmas.iter().zip(symbolizer.data(object, &svmas)) {
                self.data.extend(name.map(|name| ((key, *svma), name)));
            }
        }
    }

    /// What data is called.
    fn data_name(&self, place: &DataPlace) -> Option<&str> {
        self.data.get(&data_key(place)).map(|name| &**name)
    }
}

/// Within a window, which holds the object.
fn data_key(place: &DataPlace) -> (usize, u64) {
    (Arc::as_ptr(&place.object).addr(), place.svma)
}

fn tally((resolved, unresolved): &mut (u64, u64), lines: &[Line]) {
    match lines {
        [] => *unresolved += 1,
        _ => *resolved += 1,
    }
}

/// Kinds of samples that are profiles as they are.
const PLAIN: [(Kind, ProfileKind); 2] =
    [(Kind::Cpu, ProfileKind::Cpu), (Kind::OffCpu, ProfileKind::OffCpu)];

/// Builds the profiles of all processes in a window, of these kinds.
pub fn build<'a>(
    window: &'a Window,
    symbols: &'a Symbols,
    time: WindowTime,
    kinds: &'a [ProfileKind],
) -> impl Iterator<Item = ProcessProfile> + 'a {
    window.processes.iter().flat_map(move |process| {
        let plain = PLAIN
            .into_iter()
            .filter(|(_, kind)| kinds.contains(kind))
            .filter_map(move |kinds| profile(kinds, process, window, symbols, time));
        let memory = kinds.contains(&ProfileKind::Alloc);
        let memory = memory.then(|| memory::profiles(process, window, symbols, time));
        let locks = kinds.contains(&ProfileKind::Lock);
        let locks = locks.then(|| locks::profiles(process, window, symbols, time));
        let heap = kinds.contains(&ProfileKind::Alloc);
        let heap = heap.then(|| heap::profile(process, window, symbols, time)).flatten();
        let block = kinds.contains(&ProfileKind::Block);
        let block = block.then(|| block::profiles(process, window, symbols, time));
        let tcp = kinds.contains(&ProfileKind::Tcp);
        let tcp = tcp.then(|| tcp::profiles(process, window, symbols, time));
        plain
            .chain(block.into_iter().flatten())
            .chain(tcp.into_iter().flatten())
            .chain(memory.into_iter().flatten())
            .chain(heap)
            .chain(locks.into_iter().flatten())
    })
}

/// The profile of samples of one kind.
fn profile(
    (kind, profile_kind): (Kind, ProfileKind),
    process: &ProcessWindow,
    window: &Window,
    symbols: &Symbols,
    time: WindowTime,
) -> Option<ProcessProfile> {
    let mut stacks = process.stacks.iter().filter(|(key, _)| key.kind == kind).peekable();
    stacks.peek()?;
    let mut assembly = Assembly::new(profile_kind, &window.ranges, symbols, time);
    assembly.main_executable(process);
    for (key, totals) in stacks {
        assembly.add(key, *totals, process.identity.is_kernel_thread);
    }
    let profile = assembly.builder.finish();
    Some(ProcessProfile { kind: profile_kind, labels: labels(process), profile })
}

/// What all samples of a process have in common.
fn labels(process: &ProcessWindow) -> Vec<(String, String)> {
    let build_id = process.main_object.as_ref().and_then(|object| object.build_id);
    let mut labels = process.identity.labels(build_id.as_ref());
    if !process.name.is_empty() {
        // A process can rename itself; who it is was found out when it was first seen.
        labels.retain(|(name, _)| *name != "comm");
        labels.push(("comm", process.name.clone()));
    }
    labels.push(("pid", process.pid.to_string()));
    labels.extend(build_id.map(|build_id| ("build_id", build_id.to_string())));
    labels.sort();
    labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A profile under construction.
struct Assembly<'a> {
    builder: ProfileBuilder,
    ranges: &'a [MappedRange],
    symbols: &'a Symbols,
    mappings: Map<u32, MappingId>,
    kernel_mapping: Option<MappingId>,
    functions: Map<usize, FunctionId>,
    kernel_locations: Map<u64, LocationId>,
    user_locations: Map<Frame, LocationId>,
}

impl<'a> Assembly<'a> {
    fn new(
        kind: ProfileKind,
        ranges: &'a [MappedRange],
        symbols: &'a Symbols,
        time: WindowTime,
    ) -> Self {
        Self::showing(kind.default_sample_type(), kind, ranges, symbols, time)
    }

    /// As [`Self::new`], with another sample type that is shown unless somebody asks for one.
    fn showing(
        value: &str,
        kind: ProfileKind,
        ranges: &'a [MappedRange],
        symbols: &'a Symbols,
        time: WindowTime,
    ) -> Self {
        let mut builder = ProfileBuilder::new(kind.sample_types(), value);
        builder.set_time(time.start_unix_ns, time.duration_ns);
        let (unit, period) = match kind {
            ProfileKind::Cpu => ("nanoseconds", time.cpu_period_ns),
            ProfileKind::Alloc => ("bytes", time.alloc_period_bytes),
            // A request stands for itself, and for those that were not chosen.
            ProfileKind::Block => ("nanoseconds", 0),
            _ => ("nanoseconds", time.wait_period_ns),
        };
        builder.set_period(value, unit, period);
        Self {
            builder,
            ranges,
            symbols,
            mappings: Map::default(),
            kernel_mapping: None,
            functions: Map::default(),
            kernel_locations: Map::default(),
            user_locations: Map::default(),
        }
    }

    /// pprof takes the first mapping for the main executable.
    fn main_executable(&mut self, process: &ProcessWindow) {
        let Some(main) = &process.main_object else { return };
        let used = process.frames().find(|frame| {
            self.range(frame.range).is_some_and(|range| Arc::ptr_eq(&range.object, main))
        });
        match used {
            Some(frame) => drop(self.mapping(frame.range)),
            None => drop(self.builder.mapping(MappingInfo {
                memory_start: 0,
                memory_limit: 0,
                file_offset: 0,
                filename: &main.path,
                build_id: &build_id(main),
            })),
        }
    }

    fn add(&mut self, key: &StackKey, totals: Totals, is_kernel_thread: bool) {
        let stack = self.stack(key);
        let thread = key.thread_name.to_string_lossy();
        let values =
            [totals.count, totals.value].map(|value| i64::try_from(value).unwrap_or(i64::MAX));
        let mut labels = vec![
            ("tid", LabelValue::Num(i64::from(key.tid), "")),
            ("thread", LabelValue::Str(&thread)),
        ];
        match key.wait {
            None if key.kind != Kind::Cpu => {}
            None => labels.push(("cpu", LabelValue::Num(i64::from(key.cpu), ""))),
            Some(wait) => {
                let (names, user) = (self.kernel_names(key), self.user_names(key));
                let skipped = scheduler_frames(names.iter().copied());
                let waited = wait::labels(&wait, is_kernel_thread, &names[skipped..], &user);
                labels.push(("reason", LabelValue::Str(waited.reason.name())));
                if waited.is_idle {
                    labels.push(("idle", LabelValue::Str("true")));
                }
            }
        }
        self.builder.sample(&stack, &values, &labels);
    }

    /// The frames of a stack, leaf first, but for those by which our programs came to run.
    fn stack(&mut self, key: &StackKey) -> Vec<LocationId> {
        let skipped = match key.kind {
            Kind::Cpu | Kind::OomVictim | Kind::Allocated | Kind::Freed => 0,
            Kind::OffCpu | Kind::Waiting => scheduler_frames(self.kernel_names(key)),
            // No kernel stack is taken.
            Kind::Allocation => 0,
            Kind::Release
            | Kind::Spinning
            | Kind::Growth
            | Kind::BlockStart
            | Kind::BlockDone
            | Kind::Sync
            | Kind::TcpStarted
            | Kind::Tcp => tracepoint_frames(self.kernel_names(key)),
        };
        let kernel = key.kernel.iter().skip(skipped).map(|&address| self.kernel_location(address));
        let mut stack: Vec<LocationId> = kernel.collect();
        stack.extend(key.user.iter().map(|&frame| self.user_location(frame)));
        stack
    }

    /// The kernel's functions on a stack, leaf first; empty for those without a name.
    fn kernel_names(&self, key: &StackKey) -> Vec<&'a str> {
        let symbols = self.symbols;
        let name = |address| symbols.kernel.get(address).and_then(|lines| lines.first());
        key.kernel
            .iter()
            .map(|address| name(address).map_or("", |line| &line.function.name))
            .collect()
    }

    /// The program's functions on a stack, leaf first, with those that are inlined.
    fn user_names(&self, key: &StackKey) -> Vec<&'a str> {
        let symbols = self.symbols;
        let lines = key.user.iter().filter_map(|frame| symbols.user.get(frame));
        lines.flat_map(|lines| lines.iter()).map(|line| &*line.function.name).collect()
    }

    fn kernel_location(&mut self, address: u64) -> LocationId {
        if let Some(location) = self.kernel_locations.get(&address) {
            return *location;
        }
        let builder = &mut self.builder;
        let mapping = *self.kernel_mapping.get_or_insert_with(|| {
            builder.mapping(MappingInfo {
                memory_start: KERNEL_START,
                memory_limit: u64::MAX,
                file_offset: 0,
                filename: KERNEL_NAME,
                build_id: kernel_build_id_hex(),
            })
        });
        let symbols = self.symbols;
        let lines = symbols.kernel.get(&address).map_or(&[][..], |lines| lines);
        let lines = self.lines(lines, KERNEL_NAME);
        let location = self.builder.location(Some(mapping), address, &lines);
        self.kernel_locations.insert(address, location);
        location
    }

    fn user_location(&mut self, frame: Frame) -> LocationId {
        if let Some(location) = self.user_locations.get(&frame) {
            return *location;
        }
        let mapping = self.mapping(frame.range);
        let symbols = self.symbols;
        let lines = symbols.user.get(&frame).map_or(&[][..], |lines| lines);
        let lines = self.lines(lines, "");
        let location = self.builder.location(mapping, frame.address, &lines);
        self.user_locations.insert(frame, location);
        location
    }

    fn lines(&mut self, lines: &[Line], default_file: &str) -> Vec<(FunctionId, i64)> {
        lines
            .iter()
            .map(|line| {
                let function = &line.function;
                // Equal functions of a symbolizer are one allocation.
                let key = Arc::as_ptr(function).addr();
                let builder = &mut self.builder;
                let id = *self.functions.entry(key).or_insert_with(|| {
                    builder.function(FunctionInfo {
                        name: &function.name,
                        system_name: &function.system_name,
                        filename: function.file_name.as_deref().unwrap_or(default_file),
                        start_line: function.start_line.map_or(0, i64::from),
                    })
                });
                (id, line.line.map_or(0, i64::from))
            })
            .collect()
    }

    fn mapping(&mut self, index: u32) -> Option<MappingId> {
        if let Some(mapping) = self.mappings.get(&index) {
            return Some(*mapping);
        }
        let range = self.range(index)?;
        let mapping = self.builder.mapping(MappingInfo {
            memory_start: range.start,
            memory_limit: range.end,
            file_offset: if matches!(range.object.kind, ObjectKind::Jit(_)) {
                0
            } else {
                range.start
            },
            filename: &range.object.path,
            build_id: &build_id(&range.object),
        });
        self.mappings.insert(index, mapping);
        Some(mapping)
    }

    fn range(&self, index: u32) -> Option<&'a MappedRange> {
        self.ranges.get(usize::try_from(index).ok()?)
    }
}

/// Read once: the kernel does not change while it runs.
fn kernel_build_id_hex() -> &'static str {
    static HEX: OnceLock<String> = OnceLock::new();
    HEX.get_or_init(|| kernel_build_id().map(|id| id.to_string()).unwrap_or_default())
}

fn build_id(object: &ObjectFile) -> String {
    object.build_id.as_ref().map(BuildId::to_string).unwrap_or_default()
}
