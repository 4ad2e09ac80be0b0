//! Which tables make room for others, and for layouts of processes.

use std::collections::BTreeMap;

use everflame_agent_common::unwind::page::{Shard, USED_SHIFT};

use super::key::Key;
use super::tables::{Entry, State, Tables};
use crate::collect::monotonic_ns;

/// A table that is waited for may drive out one that nobody has looked into for this long;
/// else two busy processes would drive out each other's.
const IDLE_URGENT: u64 = 10;

/// A table that may be needed some time drives out only what is idle for this long.
const IDLE_EAGER: u64 = 60;

/// Of all pages, layouts can have 1 / this: rows must not be left without any.
pub(super) const LAYOUT_SHARE: usize = 2;

impl Tables {
    /// Takes pages for a layout, and makes room for them if need be. `None` also if layouts
    /// have their share already.
    pub(super) fn take_layout_pages(&mut self, count: usize) -> Option<Vec<u32>> {
        if self.layout_pages + count > self.max_layout_pages() {
            return None;
        }
        let ids = self.take_pages(count, true)?;
        self.layout_pages += count;
        Some(ids)
    }

    /// Gives a layout's pages back.
    pub(super) fn give_back_layout(&mut self, ids: Vec<u32>) {
        self.layout_pages -= ids.len();
        self.pages.give_back(ids);
    }

    /// Pages that layouts can have.
    pub(super) fn max_layout_pages(&self) -> usize {
        self.pages.max() / LAYOUT_SHARE
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
        let pages = |(key, at): &(Key, usize)| match &self.by_key.get(key)?.state {
            State::Shards(shards) => Some(shards.get(*at)?.pages.len()),
            _ => None,
        };
        let idle_pages: usize = by_use.values().filter_map(pages).sum();
        if self.pages.available() + idle_pages < count {
            // It would be for nothing.
            return;
        }
        for (key, at) in by_use.into_values() {
            if self.pages.available() >= count {
                return;
            }
            self.unload(key, at);
            self.stats.evicted += 1;
        }
    }

    pub(super) fn unload(&mut self, key: Key, at: usize) {
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
}
