//! One table as a file: how it is laid out and checked.
//!
//! ```text
//! bytes    0..8    magic
//!          8..12   version
//!         12..16   the constants that it depends on
//!         16..20   machine (e_machine)
//!         20..24   number of shards
//!         24..28   number of row pages
//!         28..32   0
//!         32..64   key
//!         64...    statistics, words
//!         then     of each shard: start offset, end offset, number of row pages
//!                  first offset of each row page
//!                  row pages
//!                  CRC-32 of all before
//! ```
//!
//! Numbers are little-endian and of 32 bits unless said otherwise. The length of the file
//! follows from the head, so nothing is allocated for a head that lies.
//!
//! A CRC suffices: it is there for torn writes and failing disks, not for enemies, whom the
//! directory's permissions keep out. Whatever passes it must also have the structure that
//! walks rely on.

use std::io::{self, Read, Write};

use everflame_agent_common::unwind::page::{
    LAYOUT_OFFSET_UNIT, MAX_FILE_OFFSET, MAX_INDEX_ENTRIES, RULE_INDEX_BITS, WORDS,
    row_page_has_room,
};
use object::pod::{bytes_of_slice, bytes_of_slice_mut};
use thiserror::Error;

use super::key::CacheKey;
use super::stats;
use crate::elf::Arch;
use crate::table::{Page, Shard, Table};

const MAGIC: [u8; 8] = *b"EFUNWIND";

/// To be counted up whenever the compiler, the rules or this layout change; the test
/// `change_of_tables_is_noticed` says when.
pub const VERSION: u32 = 1;

/// Changes with what the meaning of a page, and the length of the head, depend on.
const CONSTANTS: u32 = {
    let parts = [
        WORDS as u64,
        RULE_INDEX_BITS as u64,
        MAX_INDEX_ENTRIES as u64,
        LAYOUT_OFFSET_UNIT,
        MAX_FILE_OFFSET,
        stats::WORDS as u64,
    ];
    let mut hash = 0u64;
    let mut at = 0;
    while at < parts.len() {
        hash = (hash ^ parts[at]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        at += 1;
    }
    (hash >> 32) as u32
};

const HEAD_LEN: usize = 64 + 8 * stats::WORDS;
const SHARD_LEN: u64 = 12;
const PAGE_LEN: u64 = 8 * WORDS as u64;
const DIGEST_LEN: u64 = 4;

/// What a shard's end must not exceed: tables end with the block that the last offset is in.
const MAX_END: u64 = MAX_FILE_OFFSET.next_multiple_of(LAYOUT_OFFSET_UNIT);

// Pages are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Why a file is not the table that it should be.
#[derive(Debug, Error)]
pub enum EntryError {
    /// It cannot be read, or ends too soon.
    #[error("cannot read the table")]
    Read(#[source] io::Error),
    /// Another version of the agent wrote it.
    #[error("the table is one of another version")]
    Version,
    /// It is the table of another file.
    #[error("the table is the one of another file")]
    OtherFile,
    /// It was altered since it was written.
    #[error("the table's digest does not match")]
    Digest,
    /// No agent writes this.
    #[error("the table is malformed: {what}")]
    Malformed {
        /// What is malformed.
        what: &'static str,
    },
}

/// Bytes of the file that a table makes.
pub fn encoded_len(table: &Table) -> u64 {
    let pages: usize = table.shards.iter().map(|shard| shard.pages.len()).sum();
    file_len(table.shards.len() as u64, pages as u64)
}

fn file_len(shards: u64, pages: u64) -> u64 {
    HEAD_LEN as u64 + shards * SHARD_LEN + pages * (4 + PAGE_LEN) + DIGEST_LEN
}

/// Writes a table.
///
/// # Errors
/// Those of the writer.
pub fn write(key: &CacheKey, table: &Table, file: &mut dyn Write) -> io::Result<()> {
    let pages: usize = table.shards.iter().map(|shard| shard.pages.len()).sum();
    let machine = machine(table.arch);
    let mut head = Vec::with_capacity(HEAD_LEN + table.shards.len() * 12 + pages * 4);
    head.extend_from_slice(&MAGIC);
    let numbers = [VERSION, CONSTANTS, machine, table.shards.len() as u32, pages as u32, 0];
    put_all(&mut head, numbers);
    head.extend_from_slice(&key.encode());
    head.extend_from_slice(bytes_of_slice(&stats::encode(&table.stats)));
    for shard in &table.shards {
        put_all(&mut head, [shard.start_offset, shard.end_offset, shard.pages.len() as u32]);
    }
    for shard in &table.shards {
        put_all(&mut head, shard.first_offsets.iter().copied());
    }
    let mut digest = crc32fast::Hasher::new();
    digest.update(&head);
    file.write_all(&head)?;
    for shard in &table.shards {
        let bytes = bytes_of_slice(shard.pages.as_slice());
        digest.update(bytes);
        file.write_all(bytes)?;
    }
    file.write_all(&digest.finalize().to_le_bytes())
}

fn put_all(bytes: &mut Vec<u8>, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

/// Reads the table of `key` from a file of `len` bytes.
///
/// # Errors
/// The file is not what [`write`] makes for that key.
pub fn read(key: &CacheKey, len: u64, file: &mut dyn Read) -> Result<Table, EntryError> {
    let mut head = [0; HEAD_LEN];
    let mut file = Checked { file, digest: crc32fast::Hasher::new() };
    file.fill(&mut head)?;
    let mut fields = Fields(&head);
    let malformed = |what| EntryError::Malformed { what };
    if fields.take()? != MAGIC {
        return Err(malformed("magic"));
    }
    if fields.number()? != VERSION || fields.number()? != CONSTANTS {
        return Err(EntryError::Version);
    }
    let arch = arch(fields.number()?).ok_or(malformed("machine"))?;
    let shards = fields.number()?;
    let pages = fields.number()?;
    if fields.number()? != 0 {
        return Err(malformed("padding"));
    }
    if fields.take()? != key.encode() {
        return Err(EntryError::OtherFile);
    }
    // Before anything of that size is allocated.
    if shards > pages || file_len(shards.into(), pages.into()) != len {
        return Err(malformed("length"));
    }
    let mut stat_words = [0; stats::WORDS];
    bytes_of_slice_mut(&mut stat_words).copy_from_slice(fields.0);
    let stats = stats::decode(&stat_words).ok_or(malformed("statistics"))?;

    let mut extents = vec![[0u32; 3]; shards as usize];
    file.fill(bytes_of_slice_mut(&mut extents))?;
    if extents.iter().map(|[_, _, pages]| u64::from(*pages)).sum::<u64>() != pages.into() {
        return Err(malformed("number of pages"));
    }
    let mut shards = Vec::with_capacity(extents.len());
    for [start_offset, end_offset, pages] in extents {
        let mut first_offsets = vec![0; pages as usize];
        file.fill(bytes_of_slice_mut(&mut first_offsets))?;
        shards.push(Shard { start_offset, end_offset, first_offsets, pages: Vec::new() });
    }
    for shard in &mut shards {
        shard.pages = vec![[0; WORDS]; shard.first_offsets.len()];
        file.fill(bytes_of_slice_mut(&mut shard.pages))?;
    }
    file.check_digest()?;
    check_shards(&shards).map_err(malformed)?;
    Ok(Table { arch, shards, stats })
}

/// Reads and digests.
struct Checked<'a> {
    file: &'a mut dyn Read,
    digest: crc32fast::Hasher,
}

impl Checked<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), EntryError> {
        self.file.read_exact(buffer).map_err(EntryError::Read)?;
        self.digest.update(buffer);
        Ok(())
    }

    fn check_digest(self) -> Result<(), EntryError> {
        let mut digest = [0; DIGEST_LEN as usize];
        self.file.read_exact(&mut digest).map_err(EntryError::Read)?;
        let is_same = u32::from_le_bytes(digest) == self.digest.finalize();
        is_same.then_some(()).ok_or(EntryError::Digest)
    }
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        let malformed = EntryError::Malformed { what: "head" };
        let (field, rest) = self.0.split_first_chunk().ok_or(malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u32, EntryError> {
        self.take().map(u32::from_le_bytes)
    }
}

fn machine(arch: Arch) -> u32 {
    u32::from(match arch {
        Arch::X86_64 => object::elf::EM_X86_64,
        Arch::Aarch64 => object::elf::EM_AARCH64,
    })
}

fn arch(number: u32) -> Option<Arch> {
    [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| machine(*arch) == number)
}

fn check_shards(shards: &[Shard]) -> Result<(), &'static str> {
    let mut last_end = None;
    for shard in shards {
        let Shard { start_offset: start, end_offset: end, first_offsets, pages } = shard;
        let is_aligned = |offset: u32| u64::from(offset) % LAYOUT_OFFSET_UNIT == 0;
        if start >= end || !is_aligned(*start) || !is_aligned(*end) || u64::from(*end) > MAX_END {
            return Err("extent of a shard");
        }
        if last_end.replace(*end).is_some_and(|last_end| last_end != *start) {
            return Err("order of shards");
        }
        if pages.is_empty() || pages.len() > MAX_INDEX_ENTRIES {
            return Err("pages of a shard");
        }
        if first_offsets.first() != Some(start) {
            return Err("first offset of a shard");
        }
        let next_offsets = first_offsets.iter().skip(1).chain([end]);
        for ((first, next), page) in first_offsets.iter().zip(next_offsets).zip(pages) {
            let extent = next.checked_sub(*first).ok_or("order of pages")?;
            check_rows(page, extent)?;
        }
    }
    Ok(())
}

/// Checks a row page whose successor begins `extent` bytes behind it.
fn check_rows(page: &Page, extent: u32) -> Result<(), &'static str> {
    let rows = usize::try_from(page[0]).unwrap_or(usize::MAX);
    if rows == 0 || rows > 2 * (WORDS - 1) {
        return Err("number of rows");
    }
    let mut last = None;
    let mut rules = 0;
    for at in 0..rows {
        let row = (page[1 + at / 2] >> (at % 2 * 32)) as u32;
        let offset = row >> RULE_INDEX_BITS;
        rules = rules.max(1 + (row & ((1 << RULE_INDEX_BITS) - 1)) as usize);
        let is_next = match last.replace(offset) {
            None => offset == 0,
            Some(last) => last < offset,
        };
        if !is_next {
            return Err("order of rows");
        }
    }
    if !row_page_has_room(rows, rules) {
        return Err("rule of a row");
    }
    if last.is_none_or(|last| last >= extent) {
        return Err("extent of a page");
    }
    Ok(())
}
