//! Packs rows into pages and pages into shards; see [`everflame_agent_common::unwind::page`]
//! for the format.
//!
//! Rows come in order of file offset. They are kept back until a block of 4 KiB of code is
//! complete, and a block never lies in two shards, so shards begin and end where memory
//! mappings can.

use everflame_agent_common::unwind::Rule;
use everflame_agent_common::unwind::page::{
    LAYOUT_OFFSET_UNIT, MAX_INDEX_ENTRIES, MAX_ROW_PAGE_BYTES, RULE_INDEX_BITS, WORDS,
    row_page_has_room,
};

use crate::table::{Page, Shard};

/// Bytes of code in a block.
const BLOCK: u32 = LAYOUT_OFFSET_UNIT as u32;

/// Rows that any row page has room for, whatever their rules.
const SURE_ROWS: usize = (WORDS - 1) / 3 * 2;

#[derive(Clone, Copy, Debug)]
struct Row {
    offset: u32,
    rule: Rule,
}

/// Takes rows, gives shards.
#[derive(Debug)]
pub(crate) struct Builder {
    shards: Vec<Shard>,
    open: OpenPage,
    /// Rows of the present block.
    pending: Vec<Row>,
    /// The rule of the latest row.
    latest: Rule,
}

impl Builder {
    /// The table covers file offsets from `start` on, with no information at first.
    pub(crate) fn new(start: u32) -> Self {
        let start = start - start % BLOCK;
        let pending = vec![Row { offset: start, rule: Rule::NO_INFO }];
        let shards = vec![Shard::new(start)];
        Self { shards, open: OpenPage::default(), pending, latest: Rule::NO_INFO }
    }

    /// From `offset` on, not below that of the row before, `rule` is in force.
    #[inline]
    pub(crate) fn push(&mut self, offset: u32, rule: Rule) {
        if rule == self.latest {
            return;
        }
        self.latest = rule;
        match self.pending.last_mut() {
            // What had no extent is forgotten.
            Some(last) if last.offset == offset => last.rule = rule,
            Some(last) if last.offset / BLOCK == offset / BLOCK => {
                self.pending.push(Row { offset, rule });
            }
            _ => {
                self.flush();
                self.pending.push(Row { offset, rule });
            }
        }
    }

    /// The shards with all rows, up to `end`.
    pub(crate) fn finish(mut self, end: u32) -> Vec<Shard> {
        // Nothing is looked up beyond the block of `end`.
        self.pending.retain(|row| row.offset < end.next_multiple_of(BLOCK));
        self.flush();
        self.close_page();
        if let Some(last) = self.shards.last_mut() {
            last.end_offset = end.next_multiple_of(BLOCK).max(last.start_offset + BLOCK);
        }
        self.shards
    }

    /// Moves the rows of a complete block into pages.
    fn flush(&mut self) {
        let Some(first) = self.pending.first() else { return };
        let block = first.offset - first.offset % BLOCK;
        let pages = self.shards.last().map_or(0, |shard| shard.pages.len());
        // The page that is open, and what the block may need beyond it.
        let needed = 1 + self.pending.len().div_ceil(SURE_ROWS) + 1;
        if pages + needed > MAX_INDEX_ENTRIES {
            self.begin_shard(block);
        }
        let mut pending = std::mem::take(&mut self.pending);
        for row in pending.drain(..) {
            self.append(row);
        }
        self.pending = pending;
    }

    fn begin_shard(&mut self, start: u32) {
        let in_force = self.open.latest;
        self.close_page();
        if let Some(last) = self.shards.last_mut() {
            last.end_offset = start;
        }
        self.shards.push(Shard::new(start));
        // The row that reaches into the new shard is repeated, unless one begins there.
        if self.pending.first().is_none_or(|row| row.offset != start) {
            self.append(Row { offset: start, rule: in_force });
        }
    }

    fn append(&mut self, row: Row) {
        // Neighbours that have become equal because what lay between had no extent.
        if !self.open.is_empty() && self.open.latest == row.rule {
            return;
        }
        if !self.open.try_push(row) {
            self.close_page();
            // An empty page has room for any row.
            let _has_room = self.open.try_push(row);
        }
    }

    fn close_page(&mut self) {
        if let (Some((first, page)), Some(shard)) = (self.open.take(), self.shards.last_mut()) {
            shard.first_offsets.push(first);
            shard.pages.push(page);
        }
    }
}

/// Slots of a page's rule dictionary while it is built: twice as many as there can be rules.
const SLOTS: usize = 2 << RULE_INDEX_BITS;

/// A row page that is being filled.
struct OpenPage {
    base: u32,
    rows: usize,
    rules: usize,
    /// The rule of the last row.
    latest: Rule,
    words: Page,
    /// Open addressing; slot = number of the page that wrote it << 16 | rule index.
    slots: Box<[u32; SLOTS]>,
    number: u16,
}

impl std::fmt::Debug for OpenPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenPage")
            .field("base", &self.base)
            .field("rows", &self.rows)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl Default for OpenPage {
    fn default() -> Self {
        Self {
            base: 0,
            rows: 0,
            rules: 0,
            latest: Rule::NO_INFO,
            words: [0; WORDS],
            slots: Box::new([0; SLOTS]),
            number: 1,
        }
    }
}

impl OpenPage {
    fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Whether there was room.
    fn try_push(&mut self, row: Row) -> bool {
        if self.is_empty() {
            self.base = row.offset;
        }
        let offset = row.offset - self.base;
        if offset >= MAX_ROW_PAGE_BYTES {
            return false;
        }
        let (slot, known) = self.find(row.rule);
        let index = known.unwrap_or(self.rules);
        let rules = self.rules.max(index + 1);
        if !row_page_has_room(self.rows + 1, rules) {
            return false;
        }
        if known.is_none() {
            self.slots[slot] = u32::from(self.number) << 16 | index as u32;
            self.words[WORDS - 1 - index] = row.rule.bits();
        }
        let packed = u64::from(offset) << RULE_INDEX_BITS | index as u64;
        self.words[1 + self.rows / 2] |= packed << (self.rows % 2 * 32);
        self.rows += 1;
        self.rules = rules;
        self.latest = row.rule;
        true
    }

    /// The slot for a rule, and its index if the page has it already.
    fn find(&self, rule: Rule) -> (usize, Option<usize>) {
        // Fibonacci hashing: the upper bits depend on all others.
        let hash = rule.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let mut slot = hash as usize % SLOTS;
        loop {
            let entry = self.slots[slot];
            if entry >> 16 != u32::from(self.number) {
                return (slot, None);
            }
            let index = (entry & 0xffff) as usize;
            if self.words[WORDS - 1 - index] == rule.bits() {
                return (slot, Some(index));
            }
            slot = (slot + 1) % SLOTS;
        }
    }

    /// The finished page and its first offset, if it has rows.
    fn take(&mut self) -> Option<(u32, Page)> {
        if self.is_empty() {
            return None;
        }
        self.words[0] = self.rows as u64;
        let page = std::mem::replace(&mut self.words, [0; WORDS]);
        self.rows = 0;
        self.rules = 0;
        self.number = self.number.wrapping_add(1);
        if self.number == 0 {
            self.slots.fill(0);
            self.number = 1;
        }
        Some((self.base, page))
    }
}

#[cfg(test)]
#[path = "pages/tests.rs"]
mod tests;
