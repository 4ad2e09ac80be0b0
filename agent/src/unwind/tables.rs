//! Which file's rules are known, which of them are loaded, and which make room for others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};

use aya::maps::{Array, MapData, MapError};
use everflame_agent_common::unwind::page::{self, PlainSign, Shard, USED_SHIFT, shard};
use everflame_agent_common::unwind::{Rule, Stop};
use everflame_unwind::{CompileError, Source, Table};
use tracing::{debug, warn};

use super::compiler::{Compiled, Compiler};
use super::key::{Key, Keys};
use super::layout::{Content, ShardSlot};
use super::pages::PageStore;
use super::stats::UnwindStats;
use crate::collect::monotonic_ns;
use crate::object::ObjectFile;
use crate::process::{Backing, Mapping};

/// A table that is waited for may drive out one that nobody has looked into for this long;
/// else two busy processes would drive out each other's.
const IDLE_URGENT: u64 = 4;

/// A table that may be needed some time drives out only what is idle for this long.
const IDLE_EAGER: u64 = 60;

/// All tables, by file.
pub(super) struct Tables {
    pub(super) pages: PageStore,
    shards: Array<MapData, [u64; 3]>,
    free_slots: Vec<u32>,
    by_key: HashMap<Key, Entry>,
    keys: Keys,
    pub(super) stats: UnwindStats,
}

#[derive(Debug)]
struct Entry {
    object: Weak<ObjectFile>,
    state: State,
    /// The compiler has been asked.
    requested: bool,
    /// Processes whose layout says that this file's rules are not known yet.
    pending: HashSet<u32>,
    /// Parts that a sample has met.
    wanted: HashSet<usize>,
}

#[derive(Debug)]
enum State {
    Unknown,
    /// One of the constants of [`shard`] holds for the whole file.
    Uniform(u32),
    Shards(Vec<LoadedShard>),
}

#[derive(Debug)]
struct LoadedShard {
    slot: u32,
    start_offset: u32,
    end_offset: u32,
    /// Page id of what `Shard::root` is; 0 while not loaded.
    root: u32,
    depth: u32,
    /// All pages, the index among them.
    pages: Vec<u32>,
}

/// What is known about an address.
#[derive(Debug)]
pub(super) enum Lookup {
    /// What to do there.
    Rule(Rule),
    /// Why the stack ends there.
    Stop(Stop),
    /// The table is on its way.
    Wait,
}

impl Tables {
    /// No tables yet.
    pub(super) fn new(pages: PageStore, shards: Array<MapData, [u64; 3]>) -> Self {
        let slots = shard::FIRST..shards.len();
        Self {
            pages,
            shards,
            free_slots: slots.rev().collect(),
            by_key: HashMap::new(),
            keys: Keys::default(),
            stats: UnwindStats::default(),
        }
    }

    /// What a layout says of a mapping of process `pid`. Asks the compiler, if one is given,
    /// for a table that is not there.
    pub(super) fn content(
        &mut self,
        pid: u32,
        mapping: &Mapping,
        compiler: Option<&Compiler>,
    ) -> Content {
        let object = match &mapping.backing {
            Backing::Anonymous => return Content::Uniform(shard::FRAME_POINTER),
            Backing::Object(object) => object,
        };
        let Some(key) = self.keys.of(object) else { return Content::Uniform(shard::NO_INFO) };
        let entry = self.entry(key, object);
        match &entry.state {
            State::Uniform(what) => Content::Uniform(*what),
            State::Shards(shards) => {
                let slots = shards.iter().map(|loaded| ShardSlot {
                    start_offset: loaded.start_offset,
                    end_offset: loaded.end_offset,
                    slot: loaded.slot,
                });
                Content::Shards(slots.collect())
            }
            State::Unknown => {
                entry.pending.insert(pid);
                if let Some(compiler) = compiler {
                    self.request(key, compiler);
                }
                Content::Uniform(shard::PENDING)
            }
        }
    }

    /// The rule of an address in a mapping, as a BPF program would find it. Asks for the
    /// table if it is not there.
    pub(super) fn look_up(
        &mut self,
        mapping: &Mapping,
        address: u64,
        compiler: &Compiler,
    ) -> Lookup {
        let object = match &mapping.backing {
            Backing::Anonymous => return Lookup::Rule(Rule::FRAME_POINTER),
            Backing::Object(object) => object,
        };
        let Some(key) = self.keys.of(object) else { return Lookup::Stop(Stop::NoInfo) };
        let offset = mapping.offset_of(address);
        let entry = self.entry(key, object);
        let (root, depth, start) = match &entry.state {
            State::Uniform(shard::FRAME_POINTER) => return Lookup::Rule(Rule::FRAME_POINTER),
            State::Uniform(_) => return Lookup::Stop(Stop::NoInfo),
            State::Unknown => {
                return if self.request(key, compiler) {
                    Lookup::Wait
                } else {
                    Lookup::Stop(Stop::NoTable)
                };
            }
            State::Shards(shards) => {
                let covers = |s: &LoadedShard| {
                    (u64::from(s.start_offset)..u64::from(s.end_offset)).contains(&offset)
                };
                let Some(at) = shards.iter().position(covers) else {
                    return Lookup::Stop(Stop::NoInfo);
                };
                let shard = &shards[at];
                if shard.root == 0 {
                    entry.wanted.insert(at);
                    return if self.request(key, compiler) {
                        Lookup::Wait
                    } else {
                        Lookup::Stop(Stop::NoTable)
                    };
                }
                (shard.root, shard.depth, u64::from(shard.start_offset))
            }
        };
        let Some(mut rows) = self.pages.read(root) else { return Lookup::Stop(Stop::NoTable) };
        let mut first = start;
        if depth != 0 {
            let (page_first, id) = page::find_row_page::<PlainSign>(&rows, offset);
            let Some(page) = self.pages.read(id) else { return Lookup::Stop(Stop::NoTable) };
            (rows, first) = (page, page_first);
        }
        Lookup::Rule(page::find_rule::<PlainSign>(&rows, offset.wrapping_sub(first)))
    }

    /// Takes note of what the compiler has made. Returns the processes whose layouts have to
    /// be written anew.
    pub(super) fn compiled(&mut self, compiled: Compiled) -> HashSet<u32> {
        self.stats.cache = compiled.cache;
        let Some(entry) = self.by_key.get_mut(&compiled.key) else { return HashSet::new() };
        entry.requested = false;
        let wanted = std::mem::take(&mut entry.wanted);
        let pending = std::mem::take(&mut entry.pending);
        if let (Some(ns), Ok(table)) = (compiled.compile_ns, &compiled.table) {
            self.stats.compiled += 1;
            self.stats.compile_ns += ns;
            self.stats.rows_compiled += table.stats.rows;
        }
        let state = match &compiled.table {
            Ok(table) if table.stats.source == Source::None || table.shards.is_empty() => {
                State::Uniform(shard::FRAME_POINTER)
            }
            Ok(table) => match &entry.state {
                // Known already, and loaded again.
                State::Shards(_) => {
                    self.load(compiled.key, table, &wanted);
                    return pending;
                }
                _ => self.slots_for(table),
            },
            Err(error) => self.without_table(compiled.key, error),
        };
        if let Some(entry) = self.by_key.get_mut(&compiled.key) {
            entry.state = state;
        }
        if let Ok(table) = &compiled.table {
            self.load(compiled.key, table, &wanted);
        }
        pending
    }

    /// Generated code may be mapped from a file; what is no ELF file is taken for that.
    fn without_table(&mut self, key: Key, error: &CompileError) -> State {
        match error {
            CompileError::NotElf64 | CompileError::NoCode => {
                self.stats.not_compiled += 1;
                State::Uniform(shard::FRAME_POINTER)
            }
            error => {
                self.stats.malformed += 1;
                debug!(?key, error = error as &dyn std::error::Error, "no unwind table");
                State::Uniform(shard::NO_INFO)
            }
        }
    }

    fn slots_for(&mut self, table: &Table) -> State {
        if self.free_slots.len() < table.shards.len() {
            self.stats.over_budget += 1;
            return State::Unknown;
        }
        let shards = table.shards.iter().filter_map(|shard| {
            Some(LoadedShard {
                slot: self.free_slots.pop()?,
                start_offset: shard.start_offset,
                end_offset: shard.end_offset,
                root: 0,
                depth: 0,
                pages: Vec::new(),
            })
        });
        State::Shards(shards.collect())
    }

    /// Loads the parts that samples have met, and the others as far as there is room.
    fn load(&mut self, key: Key, table: &Table, wanted: &HashSet<usize>) {
        for urgent in [true, false] {
            for (at, shard) in table.shards.iter().enumerate() {
                if wanted.contains(&at) == urgent {
                    self.load_shard(key, at, shard, urgent);
                }
            }
        }
    }

    fn load_shard(&mut self, key: Key, at: usize, shard: &everflame_unwind::Shard, urgent: bool) {
        let loaded = |entry: &Entry| match &entry.state {
            State::Shards(shards) => shards.get(at).map(|shard| (shard.slot, shard.root)),
            _ => None,
        };
        let Some((slot, 0)) = self.by_key.get(&key).and_then(loaded) else { return };
        let rows = shard.pages.len();
        let count = rows + usize::from(rows > 1);
        let Some(ids) = self.take_pages(count, urgent) else {
            self.stats.over_budget += 1;
            return;
        };
        let mut written = Ok(());
        for (id, page) in ids.iter().zip(&shard.pages) {
            written = written.and_then(|()| self.pages.write(*id, page));
        }
        let (root, depth) = match (ids.first(), ids.get(rows)) {
            (_, Some(&index)) => {
                let page = shard.index_page(|page| ids[page]);
                written = written.and_then(|()| self.pages.write(index, &page));
                (index, 1)
            }
            (Some(&only), None) => (only, 0),
            (None, None) => return,
        };
        let value = Shard {
            root: 0,
            depth,
            start_offset: shard.start_offset,
            end_offset: shard.end_offset,
            used: monotonic_ns() >> USED_SHIFT,
        };
        // First without the root: programs must not see it beside old offsets.
        written = written
            .and_then(|()| self.shards.set(slot, value.to_words(), 0))
            .and_then(|()| self.shards.set(slot, Shard { root, ..value }.to_words(), 0));
        if let Err(error) = written {
            self.map_error(&error);
            self.pages.give_back(ids);
            return;
        }
        if let Some(Entry { state: State::Shards(shards), .. }) = self.by_key.get_mut(&key)
            && let Some(loaded) = shards.get_mut(at)
        {
            (loaded.root, loaded.depth, loaded.pages) = (root, depth, ids);
        }
    }

    /// Takes pages, and makes room for them if need be.
    pub(super) fn take_pages(&mut self, count: usize, urgent: bool) -> Option<Vec<u32>> {
        if let Some(ids) = self.pages.take(count) {
            return Some(ids);
        }
        if self.pages.available() < count {
            self.evict(count, if urgent { IDLE_URGENT } else { IDLE_EAGER });
        }
        self.pages.recycle();
        self.pages.take(count)
    }

    /// Unloads what nobody has looked into for the longest time, until `count` pages can be
    /// had; nothing that was used in the last `idle` units of [`USED_SHIFT`].
    fn evict(&mut self, count: usize, idle: u64) {
        let now = monotonic_ns() >> USED_SHIFT;
        let mut by_use: BTreeMap<(u64, u32), (Key, usize)> = BTreeMap::new();
        for (key, entry) in &self.by_key {
            let State::Shards(shards) = &entry.state else { continue };
            for (at, shard) in shards.iter().enumerate().filter(|(_, shard)| shard.root != 0) {
                let used = self.shards.get(&shard.slot, 0).map_or(0, |words| words[2]);
                if used + idle <= now {
                    by_use.insert((used, shard.slot), (*key, at));
                }
            }
        }
        for (key, at) in by_use.into_values() {
            if self.pages.available() >= count {
                return;
            }
            self.unload(key, at);
            self.stats.evicted += 1;
        }
    }

    fn unload(&mut self, key: Key, at: usize) {
        let Some(Entry { state: State::Shards(shards), .. }) = self.by_key.get_mut(&key) else {
            return;
        };
        let Some(shard) = shards.get_mut(at) else { return };
        let value = Shard {
            root: 0,
            depth: shard.depth,
            start_offset: shard.start_offset,
            end_offset: shard.end_offset,
            used: 0,
        };
        let (slot, pages) = (shard.slot, std::mem::take(&mut shard.pages));
        shard.root = 0;
        match self.shards.set(slot, value.to_words(), 0) {
            Ok(()) => self.pages.give_back(pages),
            // The pages stay lost rather than be written under a program's eyes.
            Err(error) => self.map_error(&error),
        }
    }

    /// Forgets files that no layout mentions, if they are not loaded or `also_loaded`.
    pub(super) fn forget_unused(&mut self, in_use: &HashSet<Key>, also_loaded: bool) {
        let unused = |(key, entry): (&Key, &Entry)| {
            let loaded = match &entry.state {
                State::Shards(shards) => shards.iter().any(|shard| shard.root != 0),
                _ => false,
            };
            (!in_use.contains(key) && !entry.requested && (also_loaded || !loaded)).then_some(*key)
        };
        let keys: Vec<Key> = self.by_key.iter().filter_map(unused).collect();
        let mut slots: Vec<u32> = Vec::new();
        for key in keys {
            let Some(Entry { state: State::Shards(shards), .. }) = self.by_key.get(&key) else {
                self.by_key.remove(&key);
                continue;
            };
            for at in 0..shards.len() {
                self.unload(key, at);
            }
            if let Some(Entry { state: State::Shards(shards), .. }) = self.by_key.remove(&key) {
                slots.extend(shards.iter().map(|shard| shard.slot));
            }
        }
        if !slots.is_empty() {
            // Layouts that mention them have been given back; a program may still read one.
            self.pages.recycle();
            self.free_slots.extend(slots);
        }
    }

    /// Whether slots are about to run out.
    pub(super) fn is_short_of_slots(&self) -> bool {
        self.free_slots.len() < shard::SLOTS as usize / 8
    }

    /// The key of a mapping's file, if it has one.
    pub(super) fn key_of(&mut self, mapping: &Mapping) -> Option<Key> {
        match &mapping.backing {
            Backing::Object(object) => self.keys.of(object),
            Backing::Anonymous => None,
        }
    }

    /// Brings the present sizes in `stats` up to date.
    pub(super) fn update_stats(&mut self) {
        let mut shards = 0;
        let mut known = 0;
        for entry in self.by_key.values() {
            known += u64::from(!matches!(entry.state, State::Unknown));
            if let State::Shards(loaded) = &entry.state {
                shards += loaded.iter().filter(|shard| shard.root != 0).count() as u64;
            }
        }
        self.stats.tables = known;
        self.stats.tables_waiting =
            self.by_key.values().filter(|entry| entry.requested).count() as u64;
        self.stats.shards = shards;
        self.stats.page_bytes = self.pages.bytes();
        self.stats.page_bytes_used = (self.pages.used() * size_of::<page::Page>()) as u64;
    }

    /// Counts a refusal of the kernel.
    pub(super) fn map_error(&mut self, error: &MapError) {
        if self.stats.map_errors == 0 {
            warn!(error = error as &dyn std::error::Error, "the kernel refuses an unwind table");
        }
        self.stats.map_errors += 1;
    }

    /// Asks the compiler, once. False if it has too much to do already.
    fn request(&mut self, key: Key, compiler: &Compiler) -> bool {
        let Some(entry) = self.by_key.get_mut(&key) else { return false };
        if !entry.requested {
            let Some(object) = entry.object.upgrade() else { return false };
            entry.requested = compiler.request(key, object);
        }
        entry.requested
    }

    fn entry(&mut self, key: Key, object: &Arc<ObjectFile>) -> &mut Entry {
        let entry = self.by_key.entry(key).or_insert_with(|| Entry {
            object: Arc::downgrade(object),
            state: State::Unknown,
            requested: false,
            pending: HashSet::new(),
            wanted: HashSet::new(),
        });
        // The same file as another process has it; the first may be closed by now.
        if entry.object.strong_count() == 0 {
            entry.object = Arc::downgrade(object);
        }
        entry
    }
}
