//! How much of a foreign file is worth the agent's time and memory.

/// Bounds on one compilation. The defaults leave several times the room that the largest
/// binaries known need (libLLVM 22: 1.3 M rows from 6 MiB; Chromium has 20 MiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one section, after decompression.
    pub section_bytes: u32,
    /// Functions (FDEs).
    pub functions: u32,
    /// Common information entries.
    pub cies: u32,
    /// Rows before equal neighbours are merged.
    pub rows: u32,
    /// Call frame instructions executed: what time is bounded by.
    pub instructions: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            section_bytes: 64 << 20,
            functions: 4_000_000,
            cies: 1 << 16,
            rows: 8_000_000,
            instructions: 64_000_000,
        }
    }
}
