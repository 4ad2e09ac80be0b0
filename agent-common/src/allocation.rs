//! Allocations: which of them are sampled, and what is known of each.
//!
//! A program runs at the entry of an allocator's function. What the function is called with says how many
//! bytes are asked for; each CPU counts them down to its next sample. Distances between samples are exponentially
//! distributed, so each byte is sampled with the same probability whatever came before it, and it does not
//! matter that threads and processes take turns on a CPU:
//!
//! `P(an object of s bytes is sampled) = 1 - exp(-s / period)`
//!
//! so it stands for the inverse of that many, and sums are right on average.

/// Where the number of bytes is among the arguments of an allocator's function.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SizeArgument {
    /// The first argument of C: `malloc`.
    First = 0,
    /// The second: `realloc`, `aligned_alloc`, `memalign`.
    Second = 1,
    /// The third: `posix_memalign`.
    Third = 2,
    /// The first times the second: `calloc`.
    Product = 3,
    /// The second, unless the first is 0: `realloc` that goes on to `malloc` in that case.
    SecondUnlessNull = 4,
    /// The second, unless the first is at most [`SMALL_ALIGNMENT`]: `memalign` that goes on to `malloc` in that
    /// case.
    SecondUnlessSmall = 5,
    /// The first argument of Go (ABIInternal): `runtime.mallocgc`.
    FirstOfGo = 6,
}

/// What all of the C library's objects are aligned to.
pub const SMALL_ALIGNMENT: u64 = 16;

/// Whose function it is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocator {
    /// None of those below, or one that is not recognised.
    Other = 0,
    /// The GNU C library's.
    Glibc = 1,
    /// Of musl.
    Musl = 2,
    /// jemalloc.
    Jemalloc = 3,
    /// tcmalloc, of gperftools or the younger one.
    Tcmalloc = 4,
    /// mimalloc.
    Mimalloc = 5,
    /// Go's runtime.
    Go = 6,
}

impl Allocator {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Other,
        Self::Glibc,
        Self::Musl,
        Self::Jemalloc,
        Self::Tcmalloc,
        Self::Mimalloc,
        Self::Go,
    ];

    /// What it is called in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Jemalloc => "jemalloc",
            Self::Tcmalloc => "tcmalloc",
            Self::Mimalloc => "mimalloc",
            Self::Go => "go",
        }
    }

    /// The one with this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|allocator| *allocator as u8 == number)
    }
}

/// What a program is told of the function that it runs in: the cookie of its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How many bytes it is asked for.
    pub size: SizeArgument,
    /// Whose it is.
    pub allocator: Allocator,
}

impl Entry {
    /// As a number.
    pub const fn cookie(self) -> u64 {
        self.size as u64 | (self.allocator as u64) << 8
    }
}

/// The [`SizeArgument`] of a cookie, as its number.
pub const fn size_argument(cookie: u64) -> u64 {
    cookie & 0xff
}

/// What more is asked for at once is no allocation but an error: there is not that much address space.
pub const MAX_OBJECT_BYTES: u64 = 1 << 47;

/// The countdown of a CPU; a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Countdown {
    /// Bytes to pass over before the next sample.
    pub left: u64,
    /// 0 before the first distance has been drawn.
    pub has_begun: u64,
}

impl Countdown {
    /// Takes an object in. Whether it is sampled; then the next distance is drawn, by what `random` gives.
    #[inline(always)]
    pub fn pass(&mut self, size: u64, period: u64, random: impl Fn() -> u64) -> bool {
        if self.has_begun == 0 {
            *self = Self { left: distance(random(), period), has_begun: 1 };
        }
        if size <= self.left {
            self.left -= size;
            return false;
        }
        self.left = distance(random(), period);
        true
    }
}

/// What is particular to a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Bytes that were asked for.
    pub size: u64,
    /// Mean distance of samples, in bytes.
    pub period: u64,
    /// Whose function was called.
    pub allocator: Allocator,
}

impl Allocation {
    /// What a program hands over of it, beside the size.
    pub const fn detail(period: u64, cookie: u64) -> [u64; 9] {
        [period, cookie, 0, 0, 0, 0, 0, 0, 0]
    }

    /// Reads that. `None` if it is nothing that this agent knows.
    pub fn read(size: u64, detail: &[u64; 9]) -> Option<Self> {
        let allocator = Allocator::from_u8((detail[1] >> 8) as u8)?;
        Some(Self { size, period: detail[0], allocator })
    }
}

/// The longest mean distance: 1 GiB.
pub const MAX_PERIOD: u64 = 1 << 30;

/// How many bytes to pass over before the next sample, `period` on average, at most [`MAX_PERIOD`]:
/// `floor(-ln(u) * period)` for `u = random / 2^64`. An object of `s` bytes has that byte in it if, and only
/// if, the unrounded distance is below `s`, so rounding costs nothing.
///
/// By products of at most 64 bits, as BPF has no others.
#[inline(always)]
pub fn distance(random: u64, period: u64) -> u64 {
    // Most objects are far smaller than the period, so what matters most are short distances. There digits
    // of `v = 1 - u` count, not of u: -ln(1 - v) = v + v^2 / 2 + ..., to 2^-25 of itself.
    let v = !random;
    if v < 1 << 52 {
        // With 44 digits after the point.
        let v = v >> 20;
        return ((v + ((v * v) >> 45)) * period) >> 44;
    }
    // ln 2 times 2^26; -ln(u) with 32 digits after the point, at most 45 * 2^32.
    const LN_2: u64 = 46_516_320;
    let ln = (minus_log2(random) * LN_2) >> 26;
    (((ln >> 16) * period) >> 16) + (((ln & 0xffff) * period) >> 32)
}

/// `-log2(random / 2^64)`, times 2^32; less than 2^38, and exact to 2^-27.
///
/// One binary digit at a time: squaring a number doubles its logarithm, so the square is 2 or more if the
/// next digit is 1.
#[inline(always)]
fn minus_log2(random: u64) -> u64 {
    const DIGITS: u64 = 32;
    // 0 has no logarithm; that its neighbour is as likely as two others is not seen.
    let random = random | 1;
    let zeros = u64::from(random.leading_zeros());
    // random / 2^64 = mantissa * 2^-(zeros + 1), with the mantissa in 1..2 as a fixed-point number with 31
    // digits after the point.
    let mut mantissa = random << (zeros & 63) >> 32;
    let mut log2 = 0;
    let mut digits = 0;
    while digits < DIGITS {
        let square = mantissa * mantissa;
        let digit = square >> 63;
        mantissa = square >> (31 + digit);
        log2 = log2 << 1 | digit;
        digits += 1;
    }
    ((zeros + 1) << DIGITS) - log2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that have nothing in common (splitmix64).
    fn random_numbers() -> impl Iterator<Item = u64> {
        (1u64..).map(|n| {
            let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        })
    }

    #[test]
    fn distances_are_logarithms() {
        for period in [1, 4096, 512 << 10, MAX_PERIOD] {
            let short = random_numbers().take(1000).map(|random| !(random >> (random & 63)));
            let ends = [0, 1, u64::MAX, u64::MAX >> 1, !(1 << 52), !((1 << 52) - 1)];
            for random in random_numbers().take(1000).chain(short).chain(ends) {
                let v = (!random) as f64 / 18_446_744_073_709_551_616.0;
                // Of 0 there is no logarithm; it is taken for 1.
                let expected = -(-v).ln_1p().max(-44.361_419) * period as f64;
                let found = distance(random, period) as f64;
                // Rounded down; to 2^-14 of itself.
                let tolerance = 1.0 + expected / f64::from(1 << 14);
                assert!((found - expected).abs() <= tolerance, "{found} {expected} {period}");
            }
        }
    }

    #[test]
    fn objects_are_sampled_with_the_probability_that_they_are_weighted_by() {
        for (size, period) in [(48u64, 4096u64), (1000, 4096), (20_000, 4096)] {
            let mut random = random_numbers();
            let mut countdown = Countdown::default();
            let objects = 400_000;
            let mut sampled = 0u64;
            for _ in 0..objects {
                let next = core::cell::Cell::new(random.next());
                let again = core::cell::Cell::new(random.next());
                let draw = || next.take().or_else(|| again.take()).unwrap_or(1);
                sampled += u64::from(countdown.pass(size, period, draw));
            }
            let p = 1.0 - (-(size as f64) / period as f64).exp();
            let expected = p * f64::from(objects);
            let error = (expected * (1.0 - p)).sqrt();
            assert!(
                (sampled as f64 - expected).abs() <= 4.0 * error + 1.0,
                "{sampled} {expected} {error}"
            );
        }
    }

    #[test]
    fn cookies_say_whose_function_it_is() {
        for allocator in Allocator::ALL {
            let entry = Entry { size: SizeArgument::Product, allocator };
            assert_eq!(size_argument(entry.cookie()), SizeArgument::Product as u64);
            let read = Allocation::read(48, &Allocation::detail(4096, entry.cookie()));
            assert_eq!(read, Some(Allocation { size: 48, period: 4096, allocator }));
        }
        assert_eq!(Allocation::read(48, &Allocation::detail(4096, 0xff00)), None);
    }
}
