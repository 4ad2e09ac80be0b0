//! What lies where in each process, as the BPF programs are told.
//!
//! Unlike `process::ProcessTable`, which follows samples in order of time, this is how things
//! are now: it is told at once, so that a process can be walked from its first moment.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{self, MapData};
use everflame_agent_common::unwind::page::Layout;

use super::compiler::Compiler;
use super::key::Key;
use super::layout::{self, Stretch};
use super::tables::Tables;
use crate::collect::ProcessEvent;
use crate::process::{Insertion, Mapping, Mappings, executable_ranges};

/// Mappings of one process that are no reason to look whether they are all there still.
const MAPPINGS_UNSUSPECTED: usize = 128;

/// Layouts that are written for one process, at most, in each [`SLOT`]: starting a program
/// takes some, and a runtime that generates code could ask for thousands a second.
const LAYOUTS_PER_SLOT: u32 = 32;

/// Pages of one layout, at most; a database or a browser takes one or two.
const MAX_LAYOUT_PAGES: usize = 64;

/// See [`LAYOUTS_PER_SLOT`].
const SLOT: Duration = Duration::from_millis(100);

/// So many are, always: there is a limit.
const MAPPINGS_SUSPECT: usize = 8 * 1024;

/// All processes with user code.
pub(super) struct Processes {
    map: maps::HashMap<MapData, u32, [u64; 5]>,
    by_pid: HashMap<u32, Process>,
    /// Processes whose layout is not what the programs have been told.
    changed: HashSet<u32>,
    /// Processes that have become other programs since the last tick.
    execs: Vec<u32>,
    /// Those of the tick before.
    execs_before: Vec<u32>,
    generation: u64,
}

#[derive(Clone)]
struct Process {
    mappings: Arc<Mappings>,
    /// What the programs have been told; shared with processes that were forked since.
    published: Option<Arc<Published>>,
    /// When it was started, or became the program that it is.
    since_ns: u64,
    /// When it, or the process that it is a copy of, became the program that it is; 0 if
    /// that was before the agent.
    exec_ns: u64,
    /// When there are more mappings than this, some may be gone: perf does not tell of
    /// unmapping.
    suspect_above: usize,
    /// When the present slot began, and layouts written in it.
    slot: (Instant, u32),
    /// The agent has seen it start: tables are loaded before a sample needs them. Of what
    /// ran already, most never will.
    is_new: bool,
}

impl Process {
    fn executed(time_ns: u64) -> Self {
        Self {
            mappings: Arc::default(),
            published: None,
            since_ns: time_ns,
            exec_ns: time_ns,
            suspect_above: MAPPINGS_UNSUSPECTED,
            slot: (Instant::now(), 0),
            is_new: true,
        }
    }

    fn seeded(mappings: Mappings, time_ns: u64) -> Self {
        Self {
            suspect_above: MAPPINGS_UNSUSPECTED.max(mappings.len() * 2),
            mappings: Arc::new(mappings),
            exec_ns: 0,
            is_new: false,
            ..Self::executed(time_ns)
        }
    }
}

struct Published {
    layout: Layout,
    pages: Vec<u32>,
}

impl Processes {
    /// No processes yet.
    pub(super) fn new(map: maps::HashMap<MapData, u32, [u64; 5]>) -> Self {
        Self {
            map,
            by_pid: HashMap::new(),
            changed: HashSet::new(),
            execs: Vec::new(),
            execs_before: Vec::new(),
            generation: 0,
        }
    }

    /// Takes note of an event. Those of one process need not come in order of time where
    /// several CPUs had a part in it: a fork that is told of late does not undo an exec.
    pub(super) fn apply(&mut self, time_ns: u64, event: ProcessEvent, tables: &mut Tables) {
        match event {
            ProcessEvent::Seed(seeded) => {
                let mut mappings = Mappings::default();
                for mapping in seeded.mappings {
                    mappings.insert(mapping);
                }
                if !mappings.is_empty() {
                    self.set(seeded.pid, Process::seeded(mappings, time_ns), tables);
                    self.changed.insert(seeded.pid);
                }
            }
            ProcessEvent::Fork { pid, parent } => self.fork(time_ns, pid, parent, tables),
            ProcessEvent::Comm { pid, exec: true, .. } => {
                if self.by_pid.get(&pid).is_none_or(|known| known.since_ns <= time_ns) {
                    self.set(pid, Process::executed(time_ns), tables);
                    self.changed.insert(pid);
                    self.execs.push(pid);
                }
            }
            ProcessEvent::Comm { .. } => {}
            ProcessEvent::Mmap { pid, mapping } => self.map(time_ns, pid, mapping),
            ProcessEvent::Exit { pid } => {
                if self.by_pid.get(&pid).is_some_and(|known| known.since_ns <= time_ns) {
                    self.remove(pid, tables);
                }
            }
        }
    }

    /// Marks processes whose layouts have to be written anew, and those that share them.
    pub(super) fn mark(&mut self, pids: &HashSet<u32>) {
        let published = |process: &Process| process.published.as_ref().map(Arc::as_ptr);
        let of_pids = pids.iter().filter_map(|pid| published(self.by_pid.get(pid)?));
        let shared: HashSet<*const Published> = of_pids.collect();
        let concerned = self.by_pid.iter().filter(|(pid, process)| {
            pids.contains(pid) || published(process).is_some_and(|one| shared.contains(&one))
        });
        self.changed.extend(concerned.map(|(pid, _)| *pid));
    }

    /// Tells the programs what has changed.
    pub(super) fn publish(&mut self, tables: &mut Tables, compiler: &Compiler) {
        let now = Instant::now();
        for pid in std::mem::take(&mut self.changed) {
            self.prune(pid);
            let Some(process) = self.by_pid.get_mut(&pid) else { continue };
            if now.duration_since(process.slot.0) >= SLOT {
                process.slot = (now, 0);
            }
            if process.slot.1 >= LAYOUTS_PER_SLOT {
                self.changed.insert(pid);
                continue;
            }
            process.slot.1 += 1;
            let mappings = Arc::clone(&process.mappings);
            let published = if mappings.is_empty() {
                None
            } else {
                let (is_new, exec_ns) = (process.is_new, process.exec_ns);
                let content =
                    |mapping: &Mapping| tables.content(pid, mapping, is_new.then_some(compiler));
                let stretches = layout::stretches(&mappings, content);
                self.generation += 1;
                let mapped_ns = mappings.newest_ns();
                let layout =
                    Layout { generation: self.generation, exec_ns, mapped_ns, ..Layout::default() };
                write(&stretches, layout, tables).map(Arc::new)
            };
            match &published {
                Some(published) => self.tell(pid, published.layout, tables),
                None => {
                    let _ = self.map.remove(&pid);
                }
            }
            let before = self
                .by_pid
                .get_mut(&pid)
                .and_then(|process| std::mem::replace(&mut process.published, published));
            release(before, tables);
        }
    }

    /// Tells the programs again what they may have forgotten: an exec whose layout was there
    /// before the exec had ended.
    pub(super) fn tell_again(&mut self, tables: &mut Tables) {
        let recent = std::mem::take(&mut self.execs);
        let before = std::mem::replace(&mut self.execs_before, recent.clone());
        for pid in recent.into_iter().chain(before) {
            let process = self.by_pid.get(&pid);
            if let Some(published) = process.and_then(|process| process.published.as_deref()) {
                self.tell(pid, published.layout, tables);
            }
        }
    }

    /// Whether there is something to tell.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Files that some process maps.
    pub(super) fn keys(&self, tables: &mut Tables) -> HashSet<Key> {
        let mut seen: HashSet<*const Mappings> = HashSet::new();
        let mut keys = HashSet::new();
        for process in self.by_pid.values() {
            if seen.insert(Arc::as_ptr(&process.mappings)) {
                keys.extend(process.mappings.iter().filter_map(|m| tables.key_of(m)));
            }
        }
        keys
    }

    /// Forgets processes that are not there any more: their exit was lost.
    pub(super) fn sweep(&mut self, is_there: impl Fn(u32) -> bool, tables: &mut Tables) {
        let gone: Vec<u32> = self.by_pid.keys().copied().filter(|pid| !is_there(*pid)).collect();
        for pid in gone {
            self.remove(pid, tables);
        }
    }

    /// How many processes have a layout.
    pub(super) fn len(&self) -> usize {
        self.by_pid.len()
    }

    fn fork(&mut self, time_ns: u64, pid: u32, parent: u32, tables: &mut Tables) {
        if self.by_pid.get(&pid).is_some_and(|known| known.since_ns > time_ns) {
            return;
        }
        let Some(known) = self.by_pid.get(&parent) else {
            self.remove(pid, tables);
            return;
        };
        let copy = Process { since_ns: time_ns, ..known.clone() };
        let layout = copy.published.as_deref().map(|published| published.layout);
        self.set(pid, copy, tables);
        match layout {
            Some(layout) if !self.changed.contains(&parent) => self.tell(pid, layout, tables),
            _ => {
                self.changed.insert(pid);
            }
        }
    }

    fn map(&mut self, time_ns: u64, pid: u32, mapping: Mapping) {
        let process = self.by_pid.entry(pid).or_insert_with(|| Process::executed(time_ns));
        let mapping = Mapping { mapped_ns: time_ns, ..mapping };
        if Arc::make_mut(&mut process.mappings).insert(mapping) == Insertion::Inserted {
            self.changed.insert(pid);
        }
    }

    /// Drops mappings that have been unmapped since, once there are suspiciously many.
    fn prune(&mut self, pid: u32) {
        let Some(process) = self.by_pid.get_mut(&pid) else { return };
        if process.mappings.len() <= process.suspect_above {
            return;
        }
        if let Some(ranges) = executable_ranges(pid) {
            Arc::make_mut(&mut process.mappings).retain_within(&ranges);
        }
        process.suspect_above =
            (process.mappings.len() * 2).clamp(MAPPINGS_UNSUSPECTED, MAPPINGS_SUSPECT);
    }

    fn set(&mut self, pid: u32, process: Process, tables: &mut Tables) {
        if let Some(before) = self.by_pid.insert(pid, process) {
            release(before.published, tables);
        }
    }

    fn remove(&mut self, pid: u32, tables: &mut Tables) {
        self.changed.remove(&pid);
        if let Some(process) = self.by_pid.remove(&pid) {
            // Not there if it found no room.
            let _ = self.map.remove(&pid);
            release(process.published, tables);
        }
    }

    fn tell(&mut self, pid: u32, layout: Layout, tables: &mut Tables) {
        let layout = Layout { sealed: layout.seal(pid), ..layout };
        if self.map.insert(pid, layout.to_words(), 0).is_err() {
            tables.stats.processes_refused += 1;
        }
    }
}

/// Writes pages for a layout. `None` if there is no room: stacks of the process are then
/// finished in user space.
fn write(stretches: &[Stretch], layout: Layout, tables: &mut Tables) -> Option<Published> {
    let leaves = layout::pages(stretches);
    let count = leaves.len() + usize::from(leaves.len() > 1);
    let ids = if count <= MAX_LAYOUT_PAGES { tables.take_pages(count, true) } else { None };
    let Some(ids) = ids else {
        tables.stats.over_budget += 1;
        return None;
    };
    let mut written = Ok(());
    for (id, page) in ids.iter().zip(&leaves) {
        written = written.and_then(|()| tables.pages.write(*id, page));
    }
    let mut layout = Layout { root: ids.first().copied()?, depth: 0, ..layout };
    if let Some(&top) = ids.get(leaves.len()) {
        let Some(page) = layout::top_page(&leaves, &ids) else {
            tables.pages.give_back(ids);
            return None;
        };
        written = written.and_then(|()| tables.pages.write(top, &page));
        layout = Layout { root: top, depth: 1, ..layout };
    }
    if let Err(error) = written {
        tables.map_error(&error);
        tables.pages.give_back(ids);
        return None;
    }
    Some(Published { layout, pages: ids })
}

/// Gives the pages of a layout back when no process has it any more.
fn release(published: Option<Arc<Published>>, tables: &mut Tables) {
    if let Some(published) = published.and_then(Arc::into_inner) {
        tables.pages.give_back(published.pages);
    }
}
