//! What lies where in each process, as the BPF programs are told.
//!
//! Unlike `process::ProcessTable`, which follows samples in order of time, this is how things
//! are now: it is told at once, so that a process can be walked from its first moment.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{self, MapData};
use everflame_agent_common::unwind::page::{Layout, Page, shard};

use super::compiler::Compiler;
use super::idle::Activity;
use super::key::Key;
use super::layout::{self, Content};
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

/// How often a process that has as many is looked at: its /proc/PID/maps is long.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// All processes with user code.
pub(super) struct Processes {
    pub(super) map: maps::HashMap<MapData, u32, [u64; 5]>,
    /// Processes that the map has room for.
    pub(super) capacity: usize,
    pub(super) by_pid: BTreeMap<u32, Process>,
    /// Processes whose layout is not what the programs have been told.
    pub(super) changed: HashSet<u32>,
    /// Processes that have the layout of those that they are copies of, which the programs
    /// have not been told yet: they may be about to become other programs.
    forked: Vec<u32>,
    /// Processes without a layout, for want of room; see `idle`.
    pub(super) dormant: BTreeSet<u32>,
    /// Where looking for activity goes on, among the dormant and among all.
    pub(super) next_looks: [u32; 2],
    /// There was nothing idle at the last look.
    pub(super) nothing_idle: bool,
    /// Processes that have become other programs since the last tick.
    execs: Vec<u32>,
    /// Those of the tick before.
    execs_before: Vec<u32>,
    generation: u64,
}

#[derive(Clone)]
pub(super) struct Process {
    mappings: Arc<Mappings>,
    /// What the programs have been told; shared with processes that were forked since.
    pub(super) published: Option<Arc<Published>>,
    /// When it was last seen to run, if anybody has looked.
    pub(super) activity: Option<Activity>,
    /// When it was started, or became the program that it is.
    since_ns: u64,
    /// When it, or the process that it is a copy of, became the program that it is; 0 if
    /// that was before the agent.
    exec_ns: u64,
    /// Which process it is a copy of, if it has not become another program since.
    parent: Option<u32>,
    /// When a copy of it was last made.
    forked_ns: u64,
    /// When there are more mappings than this, some may be gone: perf does not tell of
    /// unmapping.
    suspect_above: usize,
    /// When it was last looked.
    looked: Option<Instant>,
    /// When the present slot began, and layouts written in it.
    slot: (Instant, u32),
    /// The agent has seen it start: tables are asked for before a sample needs them. Of what
    /// ran already, most never will.
    is_new: bool,
}

impl Process {
    fn executed(time_ns: u64) -> Self {
        Self {
            mappings: Arc::default(),
            published: None,
            activity: None,
            since_ns: time_ns,
            exec_ns: time_ns,
            parent: None,
            forked_ns: 0,
            suspect_above: MAPPINGS_UNSUSPECTED,
            looked: None,
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

/// A layout that is written.
pub(super) struct Published {
    layout: Layout,
    pages: Vec<u32>,
    /// Files that it says of that their rules are not known yet.
    pending: HashSet<Key>,
}

impl Processes {
    /// No processes yet; `map` has room for `capacity`.
    pub(super) fn new(map: maps::HashMap<MapData, u32, [u64; 5]>, capacity: u32) -> Self {
        Self {
            map,
            capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
            by_pid: BTreeMap::new(),
            changed: HashSet::new(),
            forked: Vec::new(),
            dormant: BTreeSet::new(),
            next_looks: [0; 2],
            nothing_idle: false,
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
                let known = self.by_pid.get(&pid);
                if known.is_none_or(|known| known.since_ns <= time_ns) {
                    let forked_ns = known.map_or(0, |known| known.forked_ns);
                    for heir in self.heirs(pid, time_ns) {
                        let Some(copy) = self.by_pid.get(&heir) else { continue };
                        let (since_ns, parent) = (copy.since_ns, copy.parent);
                        let copy = Process { since_ns, parent, ..Process::executed(time_ns) };
                        self.set(heir, copy, tables);
                        self.changed.insert(heir);
                    }
                    self.set(pid, Process { forked_ns, ..Process::executed(time_ns) }, tables);
                    self.changed.insert(pid);
                    self.execs.push(pid);
                }
            }
            ProcessEvent::Comm { .. } => {}
            ProcessEvent::Mmap { pid, mapping } => {
                for heir in self.heirs(pid, time_ns) {
                    self.map(time_ns, heir, mapping.clone());
                }
                self.map(time_ns, pid, mapping);
            }
            ProcessEvent::Exit { pid } => {
                if self.by_pid.get(&pid).is_some_and(|known| known.since_ns <= time_ns) {
                    self.remove(pid, tables);
                }
            }
        }
    }

    /// Has the tables of a process asked for, as of one that has just started.
    pub(super) fn prepare(&mut self, pid: u32) {
        if let Some(process) = self.by_pid.get_mut(&pid)
            && !process.is_new
        {
            process.is_new = true;
            self.changed.insert(pid);
        }
    }

    /// Marks processes whose layouts wait for the rules of this file.
    pub(super) fn mark(&mut self, key: Key) {
        let concerned = self.by_pid.iter().filter(|(_, process)| {
            process.published.as_deref().is_some_and(|published| published.pending.contains(&key))
        });
        self.changed.extend(concerned.map(|(pid, _)| *pid));
    }

    /// Tells the programs what has changed.
    pub(super) fn publish(&mut self, tables: &mut Tables, compiler: &Compiler) {
        for pid in std::mem::take(&mut self.forked) {
            if !self.changed.contains(&pid) && !self.tell_known(pid) {
                self.changed.insert(pid);
            }
        }
        let now = Instant::now();
        let mut written = Written::new();
        for pid in std::mem::take(&mut self.changed) {
            self.prune(pid, now);
            let Some(process) = self.by_pid.get_mut(&pid) else { continue };
            if now.duration_since(process.slot.0) >= SLOT {
                process.slot = (now, 0);
            }
            if process.slot.1 >= LAYOUTS_PER_SLOT {
                self.changed.insert(pid);
                continue;
            }
            process.slot.1 += 1;
            let published = self.write(pid, &mut written, tables, compiler);
            let has_room = published.as_ref().is_none_or(|published| {
                self.tell(pid, published.layout)
                    || self.make_room(now, tables) && self.tell(pid, published.layout)
            });
            if !has_room {
                tables.stats.processes_refused += 1;
                self.dormant.insert(pid);
            }
            let (published, unwanted) =
                if has_room { (published, None) } else { (None, published) };
            if published.is_none() {
                let _ = self.map.remove(&pid);
            }
            let before = self
                .by_pid
                .get_mut(&pid)
                .and_then(|process| std::mem::replace(&mut process.published, published));
            release(before, tables);
            release(unwanted, tables);
        }
        for (_, published) in written.into_values() {
            release(Some(published), tables);
        }
    }

    /// Writes the layout of a process, unless the same has been `written` just now for one
    /// that it is a copy of. `None` if there is nothing to write, or no room.
    fn write(
        &mut self,
        pid: u32,
        written: &mut Written,
        tables: &mut Tables,
        compiler: &Compiler,
    ) -> Option<Arc<Published>> {
        self.dormant.remove(&pid);
        let process = self.by_pid.get(&pid)?;
        let mappings = Arc::clone(&process.mappings);
        if mappings.is_empty() {
            return None;
        }
        let (is_new, exec_ns) = (process.is_new, process.exec_ns);
        let alike = (Arc::as_ptr(&mappings), is_new, exec_ns);
        if let Some((_, published)) = written.get(&alike) {
            return Some(Arc::clone(published));
        }
        let mut pending = HashSet::new();
        let stretches = layout::stretches(&mappings, |mapping: &Mapping| {
            let content = tables.content(mapping, is_new.then_some(compiler));
            if content == Content::Uniform(shard::PENDING) {
                pending.extend(tables.key_of(mapping));
            }
            content
        });
        let leaves = layout::pages(&stretches);
        let count = leaves.len() + usize::from(leaves.len() > 1);
        if count > MAX_LAYOUT_PAGES {
            tables.stats.over_budget += 1;
            return None;
        }
        let ids = tables.take_layout_pages(count).or_else(|| {
            self.make_room(Instant::now(), tables).then(|| tables.take_layout_pages(count))?
        });
        let Some(ids) = ids else {
            tables.stats.over_budget += 1;
            self.dormant.insert(pid);
            return None;
        };
        self.generation += 1;
        let mapped_ns = mappings.newest_ns();
        let layout =
            Layout { generation: self.generation, exec_ns, mapped_ns, ..Layout::default() };
        let published = Arc::new(fill(&leaves, ids, layout, pending, tables)?);
        written.insert(alike, (mappings, Arc::clone(&published)));
        Some(published)
    }

    /// Tells the programs again what they may have forgotten: an exec whose layout was there
    /// before the exec had ended.
    pub(super) fn tell_again(&mut self) {
        let recent = std::mem::take(&mut self.execs);
        let before = std::mem::replace(&mut self.execs_before, recent.clone());
        for pid in recent.into_iter().chain(before) {
            if !self.tell_known(pid) {
                self.changed.insert(pid);
            }
        }
    }

    /// Whether there is something to tell.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed.is_empty() || !self.forked.is_empty()
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

    /// How many processes have a layout that the programs know.
    pub(super) fn told(&self) -> usize {
        self.by_pid.values().filter(|process| process.published.is_some()).count()
    }

    fn fork(&mut self, time_ns: u64, pid: u32, parent: u32, tables: &mut Tables) {
        if self.by_pid.get(&pid).is_some_and(|known| known.since_ns > time_ns) {
            return;
        }
        let Some(known) = self.by_pid.get_mut(&parent) else {
            self.remove(pid, tables);
            return;
        };
        known.forked_ns = known.forked_ns.max(time_ns);
        let copy = Process {
            since_ns: time_ns,
            parent: Some(parent),
            forked_ns: 0,
            activity: None,
            ..known.clone()
        };
        let is_told = copy.published.is_some() && !self.changed.contains(&parent);
        self.set(pid, copy, tables);
        if is_told {
            // What the process that had this id before was to be told does not matter.
            self.changed.remove(&pid);
            self.forked.push(pid);
        } else {
            self.changed.insert(pid);
        }
    }

    /// Copies of a process that were made after this moment, as far as they are the same
    /// program still: another CPU's buffer tells too late what they are copies of.
    fn heirs(&self, pid: u32, time_ns: u64) -> Vec<u32> {
        if self.by_pid.get(&pid).is_none_or(|known| known.forked_ns <= time_ns) {
            return Vec::new();
        }
        let copies = self
            .by_pid
            .iter()
            .filter(|(_, process)| process.parent == Some(pid) && process.since_ns > time_ns);
        copies.map(|(pid, _)| *pid).collect()
    }

    fn map(&mut self, time_ns: u64, pid: u32, mapping: Mapping) {
        let process = self.by_pid.entry(pid).or_insert_with(|| Process::executed(time_ns));
        let mapping = Mapping { mapped_ns: time_ns, ..mapping };
        if Arc::make_mut(&mut process.mappings).insert(mapping) == Insertion::Inserted {
            self.changed.insert(pid);
        }
    }

    /// Drops mappings that have been unmapped since, once there are suspiciously many.
    fn prune(&mut self, pid: u32, now: Instant) {
        let Some(process) = self.by_pid.get_mut(&pid) else { return };
        if process.mappings.len() <= process.suspect_above
            || process.looked.is_some_and(|looked| now.duration_since(looked) < LOOK_INTERVAL)
        {
            return;
        }
        process.looked = Some(now);
        if let Some(ranges) = executable_ranges(pid) {
            Arc::make_mut(&mut process.mappings).retain_within(&ranges);
        }
        process.suspect_above =
            (process.mappings.len() * 2).clamp(MAPPINGS_UNSUSPECTED, MAPPINGS_SUSPECT);
    }

    fn set(&mut self, pid: u32, process: Process, tables: &mut Tables) {
        self.dormant.remove(&pid);
        if let Some(before) = self.by_pid.insert(pid, process) {
            release(before.published, tables);
        }
    }

    fn remove(&mut self, pid: u32, tables: &mut Tables) {
        self.changed.remove(&pid);
        self.dormant.remove(&pid);
        if let Some(process) = self.by_pid.remove(&pid) {
            // Not there if it found no room.
            let _ = self.map.remove(&pid);
            release(process.published, tables);
        }
    }

    /// False if the map is full.
    fn tell(&mut self, pid: u32, layout: Layout) -> bool {
        let layout = Layout { sealed: layout.seal(pid), ..layout };
        self.map.insert(pid, layout.to_words(), 0).is_ok()
    }

    /// Tells what is written for this process, if anything is. False if the map is full.
    fn tell_known(&mut self, pid: u32) -> bool {
        let published = self.by_pid.get(&pid).and_then(|process| process.published.as_ref());
        let layout = published.map(|published| published.layout);
        layout.is_none_or(|layout| self.tell(pid, layout))
    }
}

/// Layouts that were written together, by what they were made of. Holding the mappings keeps
/// their address from being used again.
type Written = HashMap<(*const Mappings, bool, u64), (Arc<Mappings>, Arc<Published>)>;

/// Writes a layout into pages that have been taken for it.
fn fill(
    leaves: &[Page],
    ids: Vec<u32>,
    layout: Layout,
    pending: HashSet<Key>,
    tables: &mut Tables,
) -> Option<Published> {
    let mut written = Ok(());
    for (id, page) in ids.iter().zip(leaves) {
        written = written.and_then(|()| tables.pages.write(*id, page));
    }
    let mut layout = Layout { root: ids.first().copied()?, depth: 0, ..layout };
    if let Some(&top) = ids.get(leaves.len()) {
        let Some(page) = layout::top_page(leaves, &ids) else {
            tables.give_back_layout(ids);
            return None;
        };
        written = written.and_then(|()| tables.pages.write(top, &page));
        layout = Layout { root: top, depth: 1, ..layout };
    }
    if let Err(error) = written {
        tables.map_error(&error);
        tables.give_back_layout(ids);
        return None;
    }
    Some(Published { layout, pages: ids, pending })
}

/// Gives the pages of a layout back when no process has it any more.
pub(super) fn release(published: Option<Arc<Published>>, tables: &mut Tables) {
    if let Some(published) = published.and_then(Arc::into_inner) {
        tables.give_back_layout(published.pages);
    }
}
