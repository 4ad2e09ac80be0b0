//! Kernel memory in pages of 4 KiB: given out, written, given back.
//!
//! A page that is given back may still be read by a BPF program that has found its id a
//! moment ago. So it waits in quarantine until [`PageStore::recycle`] has waited for an RCU
//! grace period, after which all programs that ran before have ended.
//!
//! Chunks are kept until the end. Pages of one table or layout lie wherever there was room, so
//! a chunk is hardly ever empty again without moving pages of others, which programs refer to
//! by their ids; and what was needed once is needed again at the next start of the same
//! programs. So the memory of a host's busiest moment stays, and the budget is its bound.

use aya::maps::{Array, ArrayOfMaps, MapData, MapError};
use everflame_agent_common::limits::{CHUNK_PAGES, MAX_CHUNKS};
use everflame_agent_common::unwind::page::Page;
use tracing::warn;

/// Bytes of one chunk.
pub(super) const CHUNK_BYTES: u64 = CHUNK_PAGES as u64 * size_of::<Page>() as u64;

/// Pages worth waiting for rather than to allocate more.
const RECYCLE_AT: usize = 64;

/// All pages.
pub(super) struct PageStore {
    outer: ArrayOfMaps<MapData, Array<MapData, Page>>,
    chunks: Vec<Array<MapData, Page>>,
    max_chunks: usize,
    free: Vec<u32>,
    quarantine: Vec<u32>,
}

impl PageStore {
    /// Allocates the first chunk; there can be as many as `max_bytes` has room for.
    pub(super) fn new(
        outer: ArrayOfMaps<MapData, Array<MapData, Page>>,
        max_bytes: u64,
    ) -> Result<Self, MapError> {
        let max_chunks = (max_bytes / CHUNK_BYTES).clamp(1, MAX_CHUNKS.into());
        let max_chunks = usize::try_from(max_chunks).unwrap_or(1);
        let mut pages = Self {
            outer,
            chunks: Vec::new(),
            max_chunks,
            free: Vec::new(),
            quarantine: Vec::new(),
        };
        pages.grow()?;
        // Page 0 stands for "none".
        pages.free.retain(|id| *id != 0);
        Ok(pages)
    }

    /// Takes `count` pages, or none.
    pub(super) fn take(&mut self, count: usize) -> Option<Vec<u32>> {
        if self.free.len() < count && self.quarantine.len() >= count.max(RECYCLE_AT) {
            self.recycle();
        }
        while self.free.len() < count && self.chunks.len() < self.max_chunks {
            if let Err(error) = self.grow() {
                warn!(error = &error as &dyn std::error::Error, "no more memory for unwind tables");
                self.max_chunks = self.chunks.len();
            }
        }
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    /// Pages that can be taken once those given back have been recycled.
    pub(super) fn available(&self) -> usize {
        let chunks = self.max_chunks - self.chunks.len();
        self.free.len() + self.quarantine.len() + chunks * CHUNK_PAGES as usize
    }

    /// Gives pages back.
    pub(super) fn give_back(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.quarantine.extend(ids);
    }

    /// Pages that were given back and cannot be taken yet.
    pub(super) fn in_quarantine(&self) -> usize {
        self.quarantine.len()
    }

    /// Waits until no program can be reading pages that were given back (some
    /// milliseconds), and makes them available.
    pub(super) fn recycle(&mut self) {
        if self.quarantine.is_empty() {
            return;
        }
        // Whenever a map of maps is changed by a system call, the kernel waits for a grace
        // period before it returns (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c), even
        // when the new value is the old one.
        match self.outer.set(0, &self.chunks[0], 0) {
            Ok(()) => self.free.append(&mut self.quarantine),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "memory of unwind tables cannot be used again");
            }
        }
    }

    /// Fills a page that has been taken and that nothing refers to yet.
    pub(super) fn write(&mut self, id: u32, page: &Page) -> Result<(), MapError> {
        let Some(chunk) = self.chunks.get_mut((id / CHUNK_PAGES) as usize) else {
            return Err(MapError::OutOfBounds { index: id, max_entries: CHUNK_PAGES });
        };
        chunk.set(id % CHUNK_PAGES, *page, 0)
    }

    /// A copy of a page.
    pub(super) fn read(&self, id: u32) -> Option<Page> {
        if id == 0 {
            return None;
        }
        let chunk = self.chunks.get((id / CHUNK_PAGES) as usize)?;
        chunk.get(&(id % CHUNK_PAGES), 0).ok()
    }

    /// Kernel memory.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK_BYTES
    }

    /// Pages that there can be.
    pub(super) fn max(&self) -> usize {
        self.max_chunks * CHUNK_PAGES as usize
    }

    /// Pages in use or in quarantine.
    pub(super) fn used(&self) -> usize {
        self.chunks.len() * CHUNK_PAGES as usize - self.free.len()
    }

    fn grow(&mut self) -> Result<(), MapError> {
        let chunk = Array::<MapData, Page>::create(CHUNK_PAGES, 0)?;
        let index = u32::try_from(self.chunks.len()).unwrap_or(MAX_CHUNKS);
        self.outer.set(index, &chunk, 0)?;
        self.chunks.push(chunk);
        // Taken from the end: lower ids first.
        self.free.splice(0..0, (index * CHUNK_PAGES..(index + 1) * CHUNK_PAGES).rev());
        Ok(())
    }
}
