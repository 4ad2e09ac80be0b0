//! Code that processes generate at run time: what their runtimes say about it, by
//! process, in perf maps and jitdump files.
//!
//! Runtimes append to these files while they run, so each lookup first reads what has
//! been added. Later entries replace those that they overlap: generated code moves and
//! its memory is reused.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};

use super::SymbolizeStats;
use super::jitdump::JitDump;
use super::line::{Functions, Line};
use super::perf_map::PerfMap;
use crate::object::JitProcess;

/// The most that is kept of one process; 100,000 methods of a JVM take 15 MiB.
const MAX_BYTES: usize = 16 << 20;
/// A process whose generated code is not seen for this many windows is forgotten.
const MAX_IDLE_WINDOWS: u32 = 6;
/// As many jitdump files a process can have; one is usual.
const MAX_DUMPS: usize = 8;

/// One piece of generated code.
#[derive(Debug, PartialEq, Eq)]
struct Code {
    end: u64,
    name: Box<[u8]>,
    rows: Box<[SourceRow]>,
}

/// From `address` on, up to the next row, code belongs to this line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceRow {
    pub(super) address: u64,
    pub(super) line: u32,
    pub(super) file_name: Arc<str>,
}

impl Code {
    fn bytes(&self) -> usize {
        // A B-tree's nodes are two thirds full on average.
        let node = (size_of::<u64>() + size_of::<Self>()) * 3 / 2;
        // Rows share the name of the row before them where it is the same.
        let files = self.rows.chunk_by(|a, b| Arc::ptr_eq(&a.file_name, &b.file_name));
        let files: usize = files.map(|rows| rows[0].file_name.len() + 16).sum();
        node + self.name.len() + size_of_val(&*self.rows) + files
    }
}

/// The generated code of one process, by address, without overlaps.
#[derive(Default)]
pub(super) struct CodeMap {
    codes: BTreeMap<u64, Code>,
    bytes: usize,
    /// Counts replacements, after which what was found before may be wrong.
    replaced: u32,
    full: bool,
}

impl CodeMap {
    /// Ignores code of no size, and all code once the map is full.
    pub(super) fn insert(&mut self, start: u64, size: u64, name: &[u8], rows: Vec<SourceRow>) {
        let Some(end) = start.checked_add(size).filter(|end| *end > start) else { return };
        let code = Code { end, name: name.into(), rows: rows.into() };
        if self.codes.get(&start) == Some(&code) {
            return;
        }
        self.remove(start, end);
        if self.bytes + code.bytes() > MAX_BYTES {
            self.full = true;
            return;
        }
        self.bytes += code.bytes();
        self.codes.insert(start, code);
    }

    /// The code at `from` is at `to` now.
    pub(super) fn relocate(&mut self, from: u64, to: u64, size: u64) {
        let Some(code) = self.codes.remove(&from) else { return };
        self.bytes -= code.bytes();
        self.replaced += 1;
        let shift = to.wrapping_sub(from);
        let mut rows = code.rows.into_vec();
        rows.iter_mut().for_each(|row| row.address = row.address.wrapping_add(shift));
        self.insert(to, size, &code.name, rows);
    }

    fn remove(&mut self, start: u64, end: u64) {
        while let Some((&overlapped, _)) =
            self.codes.range(..end).next_back().filter(|(_, code)| code.end > start)
        {
            if let Some(code) = self.codes.remove(&overlapped) {
                self.bytes -= code.bytes();
                self.replaced += 1;
            }
        }
    }

    /// Forgets everything: the file that it came from is another one now.
    pub(super) fn clear(&mut self) {
        let replaced = self.replaced + 1;
        *self = Self { replaced, ..Self::default() };
    }

    fn lookup(&self, address: u64) -> Option<(&[u8], Option<&SourceRow>)> {
        let (_, code) = self.codes.range(..=address).next_back()?;
        if address >= code.end {
            return None;
        }
        let after = code.rows.partition_point(|row| row.address <= address);
        let row = after.checked_sub(1).and_then(|index| code.rows.get(index));
        Some((&code.name, row))
    }
}

/// What one process says about its generated code.
pub(super) struct Jit {
    number: u32,
    code: CodeMap,
    perf_map: PerfMap,
    dumps: Vec<JitDump>,
    used: u32,
    full_counted: bool,
}

impl Jit {
    /// A number for the process that is never given to another.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Changes whenever something that was found before may have become wrong.
    pub(super) fn generation(&self) -> u32 {
        self.code.replaced
    }

    pub(super) fn lookup(&self, address: u64, functions: &mut Functions) -> Option<Line> {
        let (name, row) = self.code.lookup(address)?;
        let file_name = row.map(|row| &*row.file_name);
        let function = functions.intern(name, None, file_name);
        Some(Line { function, line: row.map(|row| row.line) })
    }

    fn refresh(&mut self, process: &JitProcess, stats: &mut SymbolizeStats) {
        if self.perf_map.read(process, &mut self.code) {
            stats.parse_failures += 1;
        }
        for object in process.jitdumps.iter().take(MAX_DUMPS) {
            if !self.dumps.iter().any(|dump| dump.is_of(object)) {
                self.dumps.push(JitDump::new(object));
            }
        }
        for dump in &mut self.dumps {
            if dump.read(process.uid, &mut self.code) {
                stats.parse_failures += 1;
            }
        }
        if self.code.full && !self.full_counted {
            tracing::debug!(pid = process.pid, "too much generated code; the rest is unresolved");
            stats.parse_failures += 1;
            self.full_counted = true;
        }
    }
}

/// A process id can be reused, and a process can become another program.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    pid: u32,
    generation: u64,
}

pub(super) struct Jits {
    processes: HashMap<Process, Jit>,
    window: u32,
    next_number: u32,
}

impl Jits {
    pub(super) fn new() -> Self {
        Self { processes: HashMap::new(), window: 0, next_number: 0 }
    }

    /// The process's generated code as of now.
    pub(super) fn refreshed(&mut self, process: &JitProcess, stats: &mut SymbolizeStats) -> &Jit {
        let key = Process { pid: process.pid, generation: process.generation };
        let jit = self.processes.entry(key).or_insert_with(|| {
            self.next_number += 1;
            Jit {
                number: self.next_number,
                code: CodeMap::default(),
                perf_map: PerfMap::default(),
                dumps: Vec::new(),
                used: 0,
                full_counted: false,
            }
        });
        jit.used = self.window;
        jit.refresh(process, stats);
        jit
    }

    /// Forgets processes, the least recently seen first, until no more than `budget`
    /// bytes are in use.
    pub(super) fn shrink_to(&mut self, budget: usize) -> u64 {
        let mut dropped = 0;
        while self.bytes() > budget {
            let oldest = self.processes.iter().min_by_key(|(_, jit)| jit.used);
            let Some(oldest) = oldest.map(|(process, _)| *process) else { break };
            self.processes.remove(&oldest);
            dropped += 1;
        }
        dropped
    }

    /// Ends a window: forgets processes that have not been seen for long.
    pub(super) fn next_window(&mut self) -> u64 {
        self.window += 1;
        let before = self.processes.len();
        self.processes.retain(|_, jit| self.window - jit.used <= MAX_IDLE_WINDOWS);
        (before - self.processes.len()) as u64
    }

    pub(super) fn bytes(&self) -> usize {
        self.processes.values().map(|jit| jit.code.bytes + size_of::<Jit>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(map: &CodeMap, address: u64, expected: Option<&str>) {
        let name = map.lookup(address).map(|(name, _)| str::from_utf8(name).unwrap());
        assert_eq!(name, expected, "{address:#x}");
    }

    #[test]
    fn later_code_replaces_what_it_overlaps() {
        let mut map = CodeMap::default();
        map.insert(0x100, 0x100, b"old", vec![]);
        map.insert(0x200, 0x100, b"neighbour", vec![]);
        assert_eq!(map.replaced, 0);
        map.insert(0x180, 0x40, b"new", vec![]);
        check(&map, 0x100, None);
        check(&map, 0x180, Some("new"));
        check(&map, 0x1c0, None);
        check(&map, 0x200, Some("neighbour"));
        check(&map, 0x300, None);
        assert_eq!(map.replaced, 1);
        map.insert(0x180, 0x40, b"new", vec![]);
        assert_eq!(map.replaced, 1, "nothing has changed");
    }

    #[test]
    fn moved_code_keeps_its_lines() {
        let mut map = CodeMap::default();
        let row = |address| SourceRow { address, line: 7, file_name: "a.js".into() };
        map.insert(0x100, 0x10, b"f", vec![row(0x104)]);
        map.relocate(0x100, 0x800, 0x10);
        check(&map, 0x100, None);
        assert_eq!(map.lookup(0x802), Some((b"f".as_slice(), None)));
        assert_eq!(map.lookup(0x804), Some((b"f".as_slice(), Some(&row(0x804)))));
    }

    #[test]
    fn map_stops_growing_at_its_limit() {
        let mut map = CodeMap::default();
        let name = [b'x'; 4096];
        for index in 0..10_000 {
            map.insert(index * 0x100, 0x100, &name, vec![]);
        }
        assert!(map.full);
        assert!(map.bytes <= MAX_BYTES);
        map.clear();
        assert_eq!(map.bytes, 0);
    }
}
