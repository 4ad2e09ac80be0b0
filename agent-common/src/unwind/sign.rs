//! Decisions without branches.
//!
//! The verifier follows both sides of a branch, and a processor that walks a stack for the first
//! time in a while guesses most branches wrong, at some ten nanoseconds each. Where both sides
//! are short, numbers that are all ones or all zeros choose between them.

/// Turns the sign of a difference into a number.
pub trait Sign {
    /// 1 if `difference` is negative, else 0. Must not compile to a branch, nor to an
    /// arithmetic shift, after which verifiers since Linux 6.18 follow both results.
    fn of(difference: i64) -> u64;
}

/// For programs that nobody verifies.
#[derive(Clone, Copy, Debug)]
pub struct PlainSign;

impl Sign for PlainSign {
    #[inline(always)]
    fn of(difference: i64) -> u64 {
        difference as u64 >> 63
    }
}

/// All ones if `number` is not 0.
#[inline(always)]
pub fn mask_of<S: Sign>(number: u64) -> u64 {
    S::of((number | number.wrapping_neg()) as i64).wrapping_neg()
}

/// `one` where `mask` has ones, `other` where it has zeros.
#[inline(always)]
pub const fn choose(mask: u64, one: u64, other: u64) -> u64 {
    other ^ ((other ^ one) & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_choose() {
        for number in [1, 2, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 63) + 5, u64::MAX] {
            assert_eq!(choose(mask_of::<PlainSign>(number), 5, 6), 5);
        }
        assert_eq!(choose(mask_of::<PlainSign>(0), 5, 6), 6);
    }
}
