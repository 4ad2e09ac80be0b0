//! What the unwinder holds and has done.

use everflame_unwind::cache::CacheStats;

/// Counters since the start, and present sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnwindStats {
    /// Files whose table is known.
    pub tables: u64,
    /// Files that wait for the compiler.
    pub tables_waiting: u64,
    /// Parts of tables that are loaded.
    pub shards: u64,
    /// Kernel memory allocated for pages, in bytes.
    pub page_bytes: u64,
    /// Of these, in use.
    pub page_bytes_used: u64,
    /// Processes whose layout is known to the programs.
    pub layouts: u64,
    /// Processes that wait for room for their layout.
    pub layouts_dormant: u64,
    /// Layouts that made room for others.
    pub layouts_evicted: u64,
    /// Kernel memory of layouts, in bytes; a part of `page_bytes_used`.
    pub layout_bytes: u64,
    /// Parts of tables that made room for others.
    pub evicted: u64,
    /// Parts of tables, and layouts, that found no room.
    pub over_budget: u64,
    /// Times that a process found no room among those whose layouts are known.
    pub processes_refused: u64,
    /// Files compiled.
    pub compiled: u64,
    /// Rows compiled.
    pub rows_compiled: u64,
    /// Time spent compiling, in nanoseconds.
    pub compile_ns: u64,
    /// Files that are no code that a table can describe.
    pub not_compiled: u64,
    /// Files whose call frame information is malformed or too large.
    pub malformed: u64,
    /// Stacks that wait for a table.
    pub waiting: u64,
    /// What they hold, in bytes, the mappings of their moments among it.
    pub waiting_bytes: u64,
    /// Stacks finished in user space up to their end.
    pub finished: u64,
    /// Stacks finished in user space, but not up to their end.
    pub finished_truncated: u64,
    /// Stacks whose table did not come in time, or that found no room.
    pub given_up: u64,
    /// Updates of maps that the kernel refused.
    pub map_errors: u64,
    /// The cache on disk.
    pub cache: CacheStats,
}
