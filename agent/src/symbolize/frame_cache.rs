//! What addresses resolved to, within a byte budget.
//!
//! Each entry remembers the window of its last use. When the budget is exceeded, the
//! entries of the oldest windows go until three quarters of it are left. That costs one
//! pass over the cache now and then, and nothing (no list, no lock) on each lookup.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};

use super::line::Line;

/// Whose address it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FrameKey {
    pub(super) space: Space,
    pub(super) address: u64,
}

/// What an address is relative to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Space {
    /// The kernel, in the given state of its modules.
    Kernel(u32),
    /// Offsets in the file of this number.
    Object(u32),
    /// Addresses (svma) of data in the file of this number.
    Data(u32),
    /// A process's generated code, in the given state.
    Jit { process: u32, generation: u32 },
}

struct Entry {
    lines: Arc<[Line]>,
    window: u32,
}

pub(super) struct FrameCache {
    entries: HashMap<FrameKey, Entry>,
    bytes: usize,
    window: u32,
    evictions: u64,
}

/// Ages are told apart up to this many windows.
const MAX_AGE: usize = 64;

impl FrameCache {
    pub(super) fn new() -> Self {
        Self { entries: HashMap::new(), bytes: 0, window: 0, evictions: 0 }
    }

    pub(super) fn get(&mut self, key: FrameKey) -> Option<Arc<[Line]>> {
        let entry = self.entries.get_mut(&key)?;
        entry.window = self.window;
        Some(Arc::clone(&entry.lines))
    }

    pub(super) fn insert(&mut self, key: FrameKey, lines: Arc<[Line]>) {
        self.bytes += entry_bytes(&lines);
        let entry = Entry { lines, window: self.window };
        if let Some(previous) = self.entries.insert(key, entry) {
            self.bytes -= entry_bytes(&previous.lines);
        }
    }

    pub(super) fn next_window(&mut self) {
        self.window = self.window.wrapping_add(1);
    }

    /// Without the functions that the lines refer to.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Drops entries, those of the oldest windows first, until no more than `budget`
    /// bytes are left.
    pub(super) fn shrink_to(&mut self, budget: usize) {
        let mut bytes_by_age = [0_usize; MAX_AGE];
        for entry in self.entries.values() {
            bytes_by_age[age(self.window, entry)] += entry_bytes(&entry.lines);
        }
        let mut left = self.bytes;
        let mut kept_age = MAX_AGE;
        while left > budget && kept_age > 0 {
            kept_age -= 1;
            left -= bytes_by_age[kept_age];
        }
        // Of the youngest age that does not fit as a whole, keep what fits.
        let mut room = budget.saturating_sub(left);
        let before = self.entries.len();
        let (window, bytes) = (self.window, &mut self.bytes);
        self.entries.retain(|_, entry| {
            let size = entry_bytes(&entry.lines);
            let age = age(window, entry);
            let keep = age < kept_age || (age == kept_age && size <= room);
            if age == kept_age && keep {
                room -= size;
            }
            if !keep {
                *bytes -= size;
            }
            keep
        });
        self.evictions += (before - self.entries.len()) as u64;
        self.entries.shrink_to_fit();
    }
}

fn age(window: u32, entry: &Entry) -> usize {
    usize::try_from(window.wrapping_sub(entry.window)).unwrap_or(MAX_AGE).min(MAX_AGE - 1)
}

/// The entry in the table with its share of empty slots, and its lines with their counts.
fn entry_bytes(lines: &[Line]) -> usize {
    const SLOT: usize = (size_of::<FrameKey>() + size_of::<Entry>() + 1) * 3 / 2;
    SLOT + 32 + size_of_val(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::line::Functions;

    fn key(address: u64) -> FrameKey {
        FrameKey { space: Space::Object(1), address }
    }

    #[test]
    fn oldest_window_is_evicted_first() {
        let mut functions = Functions::default();
        let lines: Arc<[Line]> = [Line::named(functions.intern(b"f", None, None))].into();
        let mut cache = FrameCache::new();
        for window in 0..4 {
            for address in 0..100 {
                cache.insert(key(window * 100 + address), Arc::clone(&lines));
            }
            cache.next_window();
        }
        assert!(cache.get(key(0)).is_some(), "used again: no longer old");
        let half = cache.bytes() / 2;
        cache.shrink_to(half);
        assert!(cache.bytes() <= half);
        assert!(cache.get(key(0)).is_some());
        assert!(cache.get(key(1)).is_none());
        assert!(cache.get(key(399)).is_some());
        assert!(cache.evictions() >= 200);
        cache.shrink_to(0);
        assert_eq!(cache.bytes(), 0);
    }
}
