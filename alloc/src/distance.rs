//! How far it is to the next sample: bytes, from an exponential distribution.
//!
//! Where the distances between sampled bytes are exponential, each byte is sampled with the same
//! probability, whatever has been allocated before and by whatever sizes: `P(an object of s bytes is
//! sampled) = 1 - exp(-s / period)`. Fixed distances would miss, or always hit, what a program
//! allocates in step with them.
//!
//! By integers only, because a program may look at the flags of floating point operations around its
//! calls of `malloc`.

/// Longest mean distance: what is drawn from it still fits an `i64` many times over.
const MAX_PERIOD: u64 = 1 << 50;

/// ln 2 = 0.693147..., times 2^32.
const LN_2: u128 = 2_977_044_472;

/// Digits of a logarithm after the binary point.
const FRACTION_BITS: u32 = 32;

/// A number from 1 up to 2^64 - 1, and the state that the next one comes from: Marsaglia's xorshift with
/// the multiplication of Vigna ("An experimental exploration of Marsaglia's xorshift generators, scrambled").
///
/// `state` must not be 0 and never becomes so.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    let mut x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    x.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// A state from whatever differs between threads and processes; never 0.
pub(crate) fn seed(entropy: u64) -> u64 {
    // The finaliser of splitmix64: states from neighbouring numbers have nothing in common.
    let mut x = entropy.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)).max(1)
}

/// How many bytes to pass over before the next sample, `period` on average.
///
/// `floor(-ln(u) * period)` for `u = random / 2^64`: an object of `s` bytes has that byte in it if, and only
/// if, the unrounded distance is below `s`, so rounding costs nothing.
pub(crate) fn distance(random: u64, period: u64) -> i64 {
    let period = u128::from(period.clamp(1, MAX_PERIOD));
    // At most 64 * 2^32 * 2^32 * 2^50 = 2^120.
    let bytes = (u128::from(minus_log2(random)) * LN_2 * period) >> (2 * FRACTION_BITS);
    // At most 44.4 * 2^50.
    bytes as i64
}

/// `-log2(random / 2^64)`, times 2^32; exact to the last of these 32 bits or so.
///
/// One binary digit at a time: squaring a number doubles its logarithm, so the square is 2 or more if the
/// next digit is 1. That is 32 multiplications, some 50 ns, once in `period` bytes.
fn minus_log2(random: u64) -> u64 {
    let random = random.max(1);
    let zeros = random.leading_zeros();
    // random / 2^64 = mantissa * 2^-(zeros + 1), with the mantissa in 1..2 as a fixed-point number with 63
    // digits after the point.
    let mut mantissa = random << zeros;
    let mut log2 = 0u64;
    for _ in 0..FRACTION_BITS {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let digit = (square >> 64) as u64;
        mantissa = (square >> digit) as u64;
        log2 = log2 << 1 | digit;
    }
    (u64::from(zeros + 1) << FRACTION_BITS) - log2
}
