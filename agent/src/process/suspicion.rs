//! When a process is suspected of having unmapped what it is known to have mapped.

use super::mappings::MAX_MAPPINGS;

/// Mappings of one process that are no reason to look whether they are all there still.
pub(super) const MAPPINGS_UNSUSPECTED: usize = 1024;

/// When it is worth a look which mappings are there still, as perf does not tell of unmapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspicion {
    /// With so many.
    pub(super) at: usize,
    /// Not before this moment, on CLOCK_MONOTONIC.
    pub(super) not_before_ns: u64,
}

impl Suspicion {
    /// Not before there are twice as many as these, which are there.
    pub(super) fn after(mappings: usize, not_before_ns: u64) -> Self {
        Self { at: (mappings * 2).clamp(MAPPINGS_UNSUSPECTED, MAX_MAPPINGS), not_before_ns }
    }
}
