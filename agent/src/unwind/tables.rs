//! Which file's rules are known, which of them are loaded, and which make room for others.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, MapError};
use everflame_agent_common::unwind::page::{self, Shard, USED_SHIFT, shard};
use everflame_agent_common::unwind::{PlainSign, Rule, Stop};
use everflame_unwind::{CompileError, Source, Table};
use tracing::{debug, warn};

use super::compiler::{Compiled, Compiler, Urgency};
use super::key::{Key, Keys};
use super::layout::{Content, ShardSlot};
use super::pages::PageStore;
use super::stats::UnwindStats;
use crate::collect::monotonic_ns;
use crate::object::ObjectFile;
use crate::process::{Backing, Mapping};

/// How soon a table for which there was no room is asked for again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// A table of more pages (some 70 000 rows) is loaded when a sample meets it, not when the file
/// is mapped: most large libraries of most programs never are, and they are what takes memory.
const EAGER_PAGES: usize = 80;

/// All tables, by file.
pub(super) struct Tables {
    pub(super) pages: PageStore,
    pub(super) shards: Array<MapData, [u64; 3]>,
    free_slots: Vec<u32>,
    pub(super) by_key: HashMap<Key, Entry>,
    keys: Keys,
    /// Pages that layouts of processes have taken.
    pub(super) layout_pages: usize,
    pub(super) stats: UnwindStats,
}

/// One file.
#[derive(Debug)]
pub(super) struct Entry {
    object: Weak<ObjectFile>,
    pub(super) state: State,
    /// The compiler has been asked, and how much it matters.
    requested: Option<Urgency>,
    /// Parts that a sample has met.
    wanted: HashSet<usize>,
    /// There was no room, or the file has changed: not to be tried again before this.
    not_before: Option<Instant>,
}

/// What is known of a file.
#[derive(Debug)]
pub(super) enum State {
    /// Nothing yet.
    Unknown,
    /// One of the constants of [`shard`] holds for the whole file.
    Uniform(u32),
    /// It has rules, in these parts.
    Shards(Vec<LoadedShard>),
}

/// A part of a file that may be loaded.
#[derive(Debug)]
pub(super) struct LoadedShard {
    pub(super) slot: u32,
    pub(super) start_offset: u32,
    pub(super) end_offset: u32,
    /// Page id of what `Shard::root` is; 0 while not loaded.
    pub(super) root: u32,
    pub(super) depth: u32,
    /// All pages, the index among them.
    pub(super) pages: Vec<u32>,
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
            layout_pages: 0,
            stats: UnwindStats::default(),
        }
    }

    /// What a layout says of a mapping. Asks the compiler, if one is given, for a table that is
    /// not there.
    pub(super) fn content(&mut self, mapping: &Mapping, compiler: Option<&Compiler>) -> Content {
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
                if let Some(compiler) = compiler {
                    self.request(key, Urgency::Eager, compiler);
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
                return if self.request(key, Urgency::Awaited, compiler) {
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
                    return if self.request(key, Urgency::Awaited, compiler) {
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

    /// Takes note of what the compiler has made. Returns whether layouts that mention the file
    /// have to be written anew.
    pub(super) fn compiled(&mut self, compiled: Compiled) -> bool {
        self.stats.cache = compiled.cache;
        let Some(entry) = self.by_key.get_mut(&compiled.key) else { return false };
        let is_awaited = entry.requested.take() == Some(Urgency::Awaited);
        let wanted = std::mem::take(&mut entry.wanted);
        let is_met = is_awaited || !wanted.is_empty();
        if let (Some(ns), Ok(table)) = (compiled.compile_ns, &compiled.table) {
            self.stats.compiled += 1;
            self.stats.compile_ns += ns;
            self.stats.rows_compiled += table.stats.rows;
        }
        let has_shards = matches!(entry.state, State::Shards(_));
        let state = match &compiled.table {
            Err(error) if has_shards => {
                // It was truncated since; what is loaded stays.
                self.stats.malformed += 1;
                debug!(key = ?compiled.key, error = error as &dyn std::error::Error, "not loaded");
                self.put_off(compiled.key);
                return false;
            }
            Ok(table) if table.stats.source == Source::None || table.shards.is_empty() => {
                State::Uniform(shard::FRAME_POINTER)
            }
            Ok(table) => match &entry.state {
                // Known already, and loaded again.
                State::Shards(known) => {
                    let extent =
                        |shard: &everflame_unwind::Shard| (shard.start_offset, shard.end_offset);
                    let is_same = known.len() == table.shards.len()
                        && known.iter().zip(&table.shards).all(|(known, shard)| {
                            (known.start_offset, known.end_offset) == extent(shard)
                        });
                    if is_same {
                        self.load(compiled.key, table, &wanted, is_met);
                    } else {
                        self.put_off(compiled.key);
                    }
                    return false;
                }
                _ => self.slots_for(compiled.key, table),
            },
            Err(error) => self.without_table(compiled.key, error),
        };
        let is_known = !matches!(state, State::Unknown);
        if let Some(entry) = self.by_key.get_mut(&compiled.key) {
            entry.state = state;
        }
        if let Ok(table) = &compiled.table {
            self.load(compiled.key, table, &wanted, is_met);
        }
        is_known
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

    fn slots_for(&mut self, key: Key, table: &Table) -> State {
        if self.free_slots.len() < table.shards.len() {
            self.stats.over_budget += 1;
            self.put_off(key);
            return State::Unknown;
        }
        let mut shards = Vec::with_capacity(table.shards.len());
        for shard in &table.shards {
            let Some(slot) = self.free_slots.pop() else { break };
            let (start_offset, end_offset) = (shard.start_offset, shard.end_offset);
            // Programs tell what is not loaded from what there is nothing about.
            let value = Shard { start_offset, end_offset, ..Shard::default() };
            if let Err(error) = self.shards.set(slot, value.to_words(), 0) {
                self.map_error(&error);
            }
            let (root, depth, pages) = (0, 0, Vec::new());
            shards.push(LoadedShard { slot, start_offset, end_offset, root, depth, pages });
        }
        State::Shards(shards)
    }

    /// Loads the parts that samples have met, and the others as far as there is room; nothing
    /// of a large table that no sample has met yet.
    fn load(&mut self, key: Key, table: &Table, wanted: &HashSet<usize>, is_met: bool) {
        let pages: usize = table.shards.iter().map(|shard| shard.pages.len()).sum();
        if !is_met && pages > EAGER_PAGES {
            return;
        }
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
            self.put_off(key);
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

    /// Forgets files that no layout mentions, if they are not loaded or `also_loaded`.
    pub(super) fn forget_unused(&mut self, in_use: &HashSet<Key>, also_loaded: bool) {
        let unused = |(key, entry): (&Key, &Entry)| {
            let loaded = match &entry.state {
                State::Shards(shards) => shards.iter().any(|shard| shard.root != 0),
                _ => false,
            };
            (!in_use.contains(key) && entry.requested.is_none() && (also_loaded || !loaded))
                .then_some(*key)
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
            self.by_key.values().filter(|entry| entry.requested.is_some()).count() as u64;
        self.stats.shards = shards;
        self.stats.page_bytes = self.pages.bytes();
        self.stats.layout_bytes = (self.layout_pages * size_of::<page::Page>()) as u64;
        self.stats.page_bytes_used = (self.pages.used() * size_of::<page::Page>()) as u64;
    }

    /// Counts a refusal of the kernel.
    pub(super) fn map_error(&mut self, error: &MapError) {
        if self.stats.map_errors == 0 {
            warn!(error = error as &dyn std::error::Error, "the kernel refuses an unwind table");
        }
        self.stats.map_errors += 1;
    }

    /// Does not ask for a table again for a while.
    fn put_off(&mut self, key: Key) {
        if let Some(entry) = self.by_key.get_mut(&key) {
            entry.not_before = Some(Instant::now() + RETRY_INTERVAL);
        }
    }

    /// Asks the compiler, once. False if it has too much to do already.
    fn request(&mut self, key: Key, urgency: Urgency, compiler: &Compiler) -> bool {
        let Some(entry) = self.by_key.get_mut(&key) else { return false };
        if entry.not_before.is_some_and(|time| Instant::now() < time) {
            return false;
        }
        match entry.requested {
            None => {
                let Some(object) = entry.object.upgrade() else { return false };
                if !compiler.request(key, object, urgency) {
                    return false;
                }
                entry.requested = Some(urgency);
            }
            Some(before) if before < urgency => {
                compiler.hurry(key);
                entry.requested = Some(urgency);
            }
            Some(_) => {}
        }
        true
    }

    fn entry(&mut self, key: Key, object: &Arc<ObjectFile>) -> &mut Entry {
        let entry = self.by_key.entry(key).or_insert_with(|| Entry {
            object: Arc::downgrade(object),
            state: State::Unknown,
            requested: None,
            wanted: HashSet::new(),
            not_before: None,
        });
        // The same file as another process has it; the first may be closed by now.
        if entry.object.strong_count() == 0 {
            entry.object = Arc::downgrade(object);
        }
        entry
    }
}
