//! Counters of what symbolisation did, for the agent's own metrics.

use std::sync::Arc;

use super::line::Line;

/// All but `cache_bytes` count up from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SymbolizeStats {
    /// Addresses that were asked for.
    pub frames: u64,
    /// Addresses that had been resolved before.
    pub cache_hits: u64,
    /// Addresses that had to be looked up.
    pub cache_misses: u64,
    /// Addresses that resolved to at least one function.
    pub resolved: u64,
    /// Addresses that did not.
    pub unresolved: u64,
    /// Binaries that were read, again after an eviction included.
    pub binaries_opened: u64,
    /// Calls whose binary was not read again because that would have cost too much.
    pub binaries_deferred: u64,
    /// Frames, binaries and processes' generated code that gave way to others.
    pub evictions: u64,
    /// Files, or parts of files, that could not be used.
    pub parse_failures: u64,
    /// Memory in use now, as estimated.
    pub cache_bytes: usize,
}

impl SymbolizeStats {
    pub(super) fn count_cache(&mut self, hit: bool) {
        self.frames += 1;
        self.cache_hits += u64::from(hit);
        self.cache_misses += u64::from(!hit);
    }

    pub(super) fn count_resolved(&mut self, frames: &[Arc<[Line]>]) {
        let resolved = frames.iter().filter(|lines| !lines.is_empty()).count() as u64;
        self.resolved += resolved;
        self.unresolved += frames.len() as u64 - resolved;
    }
}
