//! The result: pages as the walker reads them, and what is in them.

use everflame_agent_common::unwind::page::{
    self, RULE_INDEX_BITS, UNUSED, WORDS, find_row_page, find_rule,
};
use everflame_agent_common::unwind::{PlainSign, Rule};

use crate::elf::Arch;
use crate::stats::TableStats;

/// 4 KiB, in the format of [`everflame_agent_common::unwind::page`].
pub type Page = page::Page;

/// The rules of one file.
#[derive(Clone, Debug)]
pub struct Table {
    /// What the code is for.
    pub arch: Arch,
    /// Sorted, one ends where the next begins.
    pub shards: Vec<Shard>,
    /// What was found and what became of it.
    pub stats: TableStats,
}

/// A part of a file that one index page covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// First file offset, a multiple of 4 KiB.
    pub start_offset: u32,
    /// File offset behind the last, a multiple of 4 KiB.
    pub end_offset: u32,
    /// The file offset that each of `pages` begins at; the first is `start_offset`.
    pub first_offsets: Vec<u32>,
    /// Row pages, at most 512.
    pub pages: Vec<Page>,
}

impl Shard {
    pub(crate) fn new(start_offset: u32) -> Self {
        Self {
            start_offset,
            end_offset: start_offset,
            first_offsets: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// The index page over `pages`, if page `i` is stored under the id `ids(i)`.
    pub fn index_page(&self, mut id: impl FnMut(usize) -> u32) -> Page {
        let mut index = [UNUSED; WORDS];
        for (at, (word, first)) in index.iter_mut().zip(&self.first_offsets).enumerate() {
            *word = u64::from(*first) << 32 | u64::from(id(at));
        }
        index
    }

    /// The rule in force at an offset that the shard covers.
    fn rule_at(&self, file_offset: u64) -> Rule {
        let (first, page) = match self.pages.len() {
            // One page needs no index.
            1 => (u64::from(self.start_offset), 0),
            _ => find_row_page::<PlainSign>(&self.index_page(|page| page as u32), file_offset),
        };
        let page = self.pages.get(page as usize);
        page.map_or(Rule::NO_INFO, |page| find_rule::<PlainSign>(page, file_offset - first))
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (u32, Rule)> {
        let pages = self.first_offsets.iter().zip(&self.pages);
        pages.flat_map(|(first, page)| {
            let rows = usize::try_from(page[0]).unwrap_or(0).min(2 * (WORDS - 1));
            (0..rows).map(move |at| {
                let row = (page[1 + at / 2] >> (at % 2 * 32)) as u32;
                let rule = (row & ((1 << RULE_INDEX_BITS) - 1)) as usize;
                let rule = page.get((WORDS - 1).wrapping_sub(rule)).copied().unwrap_or_default();
                (first.saturating_add(row >> RULE_INDEX_BITS), Rule::from_bits(rule))
            })
        })
    }
}

impl Table {
    /// The rule in force at a file offset, found as a walk finds it.
    pub fn rule_at(&self, file_offset: u64) -> Rule {
        let after = self.shards.partition_point(|s| u64::from(s.start_offset) <= file_offset);
        let shard = after.checked_sub(1).and_then(|at| self.shards.get(at));
        match shard {
            Some(shard) if file_offset < u64::from(shard.end_offset) => shard.rule_at(file_offset),
            _ => Rule::NO_INFO,
        }
    }

    /// All rows: file offset and the rule in force from there on.
    pub fn rows(&self) -> impl Iterator<Item = (u32, Rule)> {
        self.shards.iter().flat_map(Shard::rows)
    }
}
