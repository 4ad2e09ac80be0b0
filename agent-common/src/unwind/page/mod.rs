//! Pages of 4 KiB: rows, indexes over rows, and the memory layout of processes.
//!
//! All that a walk looks up lies in such pages, which the agent writes through shared memory
//! and the BPF programs read. Three formats:
//!
//! ```text
//! row page     word 0      number of rows n, at least 1
//!              word 1...   rows, two 32-bit ones to a word, the first in the lower half:
//!                          offset from the page's first address (22 bits) << 10 | rule index;
//!                          sorted; the first row has offset 0
//!              word 511-k  rule k
//! index page   word i      first file offset << 32 | id of a row page; sorted
//! layout page  word i      first address of stretch i of memory (i < 256), sorted, the first 0
//!              word 256+i  file offset in units of 4 KiB << 32 | shard
//! ```
//!
//! Unused words of index and layout pages hold [`UNUSED`], which sorts behind everything.
//!
//! Searches take the same path whatever they find: the verifier follows each path of a
//! program by itself, and a branch for each step would be 2^9 of them.

use super::{Rule, Sign};

/// Words of a page.
pub const WORDS: usize = 512;

/// A page of either format.
pub type Page = [u64; WORDS];

/// Sorts behind every address and every offset.
pub const UNUSED: u64 = i64::MAX as u64;

/// Bits of a row's rule index.
pub const RULE_INDEX_BITS: u32 = 10;

/// Bytes of code that one row page can cover.
pub const MAX_ROW_PAGE_BYTES: u32 = 1 << (32 - RULE_INDEX_BITS);

/// Row pages under one index page.
pub const MAX_INDEX_ENTRIES: usize = WORDS;

/// Stretches of memory in one layout page.
pub const MAX_LAYOUT_ENTRIES: usize = WORDS / 2;

/// Offsets in files are kept below this, so that searches can compare signed numbers and
/// [`UNUSED`] stays behind all.
pub const MAX_FILE_OFFSET: u64 = i32::MAX as u64;

/// The unit of file offsets in layout pages, whatever the machine's page size.
pub const LAYOUT_OFFSET_UNIT: u64 = 4096;

/// Rows and rules that have room in one row page.
pub const fn row_page_has_room(rows: usize, rules: usize) -> bool {
    1 + rows.div_ceil(2) + rules <= WORDS && rules <= 1 << RULE_INDEX_BITS
}

/// The row in force at `offset` bytes from the first address that the page covers.
#[inline(always)]
pub fn find_rule<S: Sign>(page: &Page, offset: u64) -> Rule {
    let last = (page[0] as i64).wrapping_sub(1);
    let key = (offset << RULE_INDEX_BITS | ((1 << RULE_INDEX_BITS) - 1)) as i64;
    let mut at = 0u64;
    let mut half = WORDS as u64;
    while half > 0 {
        let candidate = at + half;
        let row = row(page, candidate);
        let beyond = S::of(key.wrapping_sub(row as i64) | last.wrapping_sub(candidate as i64));
        at += half * (beyond ^ 1);
        half >>= 1;
    }
    let rule = row(page, at) & ((1 << RULE_INDEX_BITS) - 1);
    Rule::from_bits(page[((WORDS as u64 - 1).wrapping_sub(rule) & (WORDS as u64 - 1)) as usize])
}

/// Row `at` of a row page: word `1 + at / 2`.
#[inline(always)]
fn row(page: &Page, at: u64) -> u64 {
    let word = page[((1 + (at >> 1)) & (WORDS as u64 - 1)) as usize];
    word >> ((at & 1) * 32) & 0xffff_ffff
}

/// The entry of an index page that covers a file offset: (first offset, page id).
#[inline(always)]
pub fn find_row_page<S: Sign>(page: &Page, file_offset: u64) -> (u64, u32) {
    let at = last_not_above::<S>(page, WORDS as u64 / 2, (file_offset << 32 | 0xffff_ffff) as i64);
    let entry = page[(at & (WORDS as u64 - 1)) as usize];
    (entry >> 32, entry as u32)
}

/// A stretch of a process's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// First address.
    pub start: u64,
    /// The address behind the last, or 0 where the page does not say.
    pub end: u64,
    /// What lies there, as the page has it.
    pub what: u64,
}

/// The stretch of a layout page that an address lies in.
#[inline(always)]
pub fn find_stretch<S: Sign>(page: &Page, address: u64) -> Stretch {
    const LAST: u64 = MAX_LAYOUT_ENTRIES as u64 - 1;
    let at = last_not_above::<S>(page, MAX_LAYOUT_ENTRIES as u64 / 2, address as i64) & LAST;
    // Without a branch: behind the last entry comes something else.
    let is_last = (at + 1) / MAX_LAYOUT_ENTRIES as u64;
    Stretch {
        start: page[at as usize],
        end: page[((at + 1) & LAST) as usize] * (1 - is_last),
        what: page[at as usize + MAX_LAYOUT_ENTRIES],
    }
}

/// The position of the last word, among the first `2 * half`, that is not above `key`. The
/// first one counts as such.
#[inline(always)]
fn last_not_above<S: Sign>(page: &Page, mut half: u64, key: i64) -> u64 {
    let mut at = 0u64;
    while half > 0 {
        let candidate = at + half;
        let word = page[(candidate & (WORDS as u64 - 1)) as usize] as i64;
        at += half * (S::of(key.wrapping_sub(word)) ^ 1);
        half >>= 1;
    }
    at
}

/// What a stretch of memory is made of, in the lower half of a layout page's word.
pub mod shard {
    /// No executable memory.
    pub const UNMAPPED: u32 = 0;
    /// Code with frame pointers and without rules, such as what a runtime generates.
    pub const FRAME_POINTER: u32 = 1;
    /// A file whose rules are not known yet.
    pub const PENDING: u32 = 2;
    /// A file that says nothing about its code.
    pub const NO_INFO: u32 = 3;
    /// Slots of the shard map begin here.
    pub const FIRST: u32 = 4;
    /// Slots of the shard map: files of up to half a million rows take one.
    pub const SLOTS: u32 = 8 * 1024;
}

/// The rules of one file, or of a part of a file that has too many for one index page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// Page id of the index page (`depth` 1) or of the only row page (0). 0: not loaded.
    pub root: u32,
    /// See `root`.
    pub depth: u32,
    /// File offsets covered: from here ...
    pub start_offset: u32,
    /// ... up to here.
    pub end_offset: u32,
    /// When it was last looked into: CLOCK_MONOTONIC >> [`USED_SHIFT`].
    pub used: u64,
}

const _: () = assert!(size_of::<Shard>() == 24);

impl Shard {
    /// As the programs read it. Both machines that there are store low halves first.
    pub const fn to_words(self) -> [u64; 3] {
        [pair(self.root, self.depth), pair(self.start_offset, self.end_offset), self.used]
    }
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// Turns nanoseconds into the unit of [`Shard::used`], about a second.
pub const USED_SHIFT: u32 = 30;

/// The memory layout of a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Never used twice: what was found out about an address under one generation does not
    /// hold under another.
    pub generation: u64,
    /// Page id of the layout page.
    pub root: u32,
    /// 1: it is a page of layout pages, whose lower halves are page ids.
    pub depth: u32,
    /// When the process became this program, on CLOCK_MONOTONIC, as far as is known.
    pub exec_ns: u64,
    /// When memory was last mapped that it knows of, on CLOCK_MONOTONIC.
    pub mapped_ns: u64,
    /// See [`Layout::seal`]; the last word, as `generation` is the first.
    pub sealed: u64,
}

const _: () = assert!(size_of::<Layout>() == 40);

impl Layout {
    /// As the programs read it.
    pub const fn to_words(self) -> [u64; 5] {
        let [root, exec_ns, mapped_ns] =
            [pair(self.root, self.depth), self.exec_ns, self.mapped_ns];
        [self.generation, root, exec_ns, mapped_ns, self.sealed]
    }

    /// What `sealed` is in the layout of this process. A program copies a layout while the
    /// agent may be replacing it, even by that of another process: then the seal is broken.
    #[inline(always)]
    pub const fn seal(&self, pid: u32) -> u64 {
        self.generation ^ (pid as u64) << 32
    }
}

#[cfg(test)]
mod tests;
