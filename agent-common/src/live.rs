//! The live heap: what a library within the process (`alloc/`) reports of sampled objects.
//!
//! An object of `s` bytes is sampled with probability `p`, independent of all others, and so stands
//! for `1 / p` such objects:
//!
//! ```text
//! p = 1 - exp(-s / period)
//! ```
//!
//! What the numbers mean is said in `alloc/src/abi.rs`, which does not change.

use crate::event::DETAIL_WORDS;

/// Bit of [`Allocated::flags`]: the object's end will be reported.
pub const WILL_BE_FREED: u64 = 1;

/// Bit of [`Allocated::flags`]: no new object, but one that was reported as ended and is not.
pub const RESTORED: u64 = 2;

/// An object that has been sampled: the detail of a [`Kind::Allocated`](crate::event::Kind).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// Where it is, in the memory of its process.
    pub address: u64,
    /// What was asked for, in bytes.
    pub size: u64,
    /// One byte in so many is sampled.
    pub period: u64,
    /// [`WILL_BE_FREED`], [`RESTORED`].
    pub flags: u64,
}

impl Allocated {
    /// As it is written into a record.
    pub const fn to_detail(self) -> [u64; DETAIL_WORDS] {
        [self.address, self.size, self.period, self.flags, 0, 0, 0, 0, 0]
    }

    /// Reads it from a record.
    pub const fn from_detail(detail: &[u64; DETAIL_WORDS]) -> Self {
        let [address, size, period, flags, ..] = *detail;
        Self { address, size, period, flags }
    }

    /// Whether its end will be reported.
    pub const fn will_be_freed(self) -> bool {
        self.flags & WILL_BE_FREED != 0
    }

    /// Whether it is one that was reported as ended.
    pub const fn is_restored(self) -> bool {
        self.flags & RESTORED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_reads_back() {
        let allocated = Allocated { address: 1, size: 2, period: 3, flags: WILL_BE_FREED };
        assert_eq!(Allocated::from_detail(&allocated.to_detail()), allocated);
        assert!(allocated.will_be_freed() && !allocated.is_restored());
    }
}
