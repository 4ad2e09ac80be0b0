//! Waits: what is kept of each thread between two switches, which waits become samples, and
//! what a sample says of them.
//!
//! A thread is off its CPU from switch-out to switch-in. If it left by itself, it waited until
//! somebody woke it, and from then on for a CPU; if it was preempted, only for a CPU.
//!
//! Waits are sampled by their length. Each thread counts down the time that it waits; the wait
//! in which the countdown ends becomes a sample, which stands for one period, and for as many
//! waits as fit into a period. A wait that is longer than a period always becomes a sample and
//! stands for itself alone. As countdowns begin at a random point, both sums are unbiased, and
//! for each thread the sum of time is off by less than a period.
//!
//! Where hundreds of threads wait for the same CPU that would be thousands of samples a second. So
//! each CPU has a [`Thinning`], which samples the samples in the same way, when they are too many:
//! it counts down what they stand for, from a period 2, 4, 8 ... times as long. So the sum of all
//! that end their waits on a CPU is off by less than such a period, however it changes meanwhile,
//! and that of each thread is right in the mean.

use crate::event::DETAIL_WORDS;

/// What is kept of a thread; a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// When it left its CPU, on CLOCK_MONOTONIC; 0 while it is on one.
    pub out_ns: u64,
    /// When it was woken, if it waits for a lock; 0 while it has not been.
    pub woken_ns: u64,
    /// The kernel's account of the time that it has been ready to run, as it was then.
    pub run_delay_ns: u64,
    /// Until when its wait has been reported already; 0 if it has not.
    pub reported_ns: u64,
    /// Waiting until the next sample, in nanoseconds; 0 before the first wait.
    pub wait_left: u64,
    /// Waiting for a CPU until the next sample.
    pub queue_left: u64,
    /// The lock that it waits for: a futex, or a lock of the kernel, where addresses have their
    /// highest bit set; 0 if it does not.
    pub lock: u64,
    /// The lock of the kernel that it is about to get; 0 if there is none.
    pub kernel_lock: u64,
    /// What the kernel says of that lock, see [`crate::lock::LockFlags`].
    pub kernel_lock_flags: u32,
    /// The kernel's `prev_state`; [`PREEMPTED`] if it did not leave by itself.
    pub state: u32,
}

const _: () = assert!(size_of::<Thread>() == 72);

/// [`Thread::state`] of a thread that was preempted. The kernel's own states are bits below.
pub const PREEMPTED: u32 = 1 << 31;

/// The thread was ready to run: it waited for a CPU.
pub const FLAG_RUN_QUEUE: u32 = 1;

/// Room for `FLAG_*`.
const FLAGS: u64 = 0xff;

/// What a sample of kind `OffCpu`, `Waiting` or `Spinning` says beside the common parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wait {
    /// When the wait began, on CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// When the thread was woken, or until when the wait has been looked at.
    pub end_ns: u64,
    /// See [`Thread::state`].
    pub state: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// The system call that the thread is in; -1 if it entered the kernel by an interrupt or
    /// a fault.
    pub syscall: i64,
    /// The system call's first two arguments.
    pub arguments: [u64; 2],
    /// The user's stack pointer.
    pub sp: u64,
    /// The user's frame pointer.
    pub fp: u64,
    /// The lock of the kernel that the thread waited for; 0 if there is none.
    pub kernel_lock: u64,
    /// What the kernel says of that lock, see [`crate::lock::LockFlags`].
    pub kernel_lock_flags: u32,
}

impl Wait {
    /// As words for a record's header.
    #[inline(always)]
    pub fn to_detail(self) -> [u64; DETAIL_WORDS] {
        [
            self.start_ns,
            self.end_ns,
            self.state as u64
                | (self.flags as u64 & FLAGS) << 32
                | (self.kernel_lock_flags as u64) << (32 + FLAGS.count_ones()),
            self.syscall as u64,
            self.arguments[0],
            self.arguments[1],
            self.sp,
            self.fp,
            self.kernel_lock,
        ]
    }

    /// From words of a record's header.
    pub fn from_detail(detail: &[u64; DETAIL_WORDS]) -> Self {
        let &[start_ns, end_ns, state_and_flags, syscall, first, second, sp, fp, kernel_lock] =
            detail;
        Self {
            start_ns,
            end_ns,
            state: state_and_flags as u32,
            flags: (state_and_flags >> 32 & FLAGS) as u32,
            syscall: syscall as i64,
            arguments: [first, second],
            sp,
            fp,
            kernel_lock,
            kernel_lock_flags: (state_and_flags >> (32 + FLAGS.count_ones())) as u32,
        }
    }
}

/// What a sample stands for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Nanoseconds.
    pub value: u64,
    /// Waits.
    pub count: u64,
}

/// Whether [`count_down`] would yield a sample.
#[inline(always)]
pub fn is_sampled(left: u64, length: u64, period: u64) -> bool {
    length != 0 && (length >= period || length >= left)
}

/// Counts `length` nanoseconds down from `left`. `None`: no sample. `random` is any number.
///
/// A sample of a short wait stands for `period / length` waits, rounded up or down at random
/// so that the mean is right.
#[inline(always)]
pub fn count_down(left: &mut u64, length: u64, period: u64, random: u32) -> Option<Weight> {
    if length == 0 {
        return None;
    }
    if length >= period {
        return Some(Weight { value: length, count: 1 });
    }
    if length < *left {
        *left -= length;
        return None;
    }
    *left += period - length;
    // Less than `length`, without a division that could fail.
    let fraction = (u64::from(random) * (length & 0xffff_ffff)) >> 32;
    let count = (period + fraction).checked_div(length).unwrap_or(1);
    Some(Weight { value: period, count })
}

/// Keeps the samples of a CPU below a rate; a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thinning {
    /// When the interval began, on CLOCK_MONOTONIC.
    pub since_ns: u64,
    /// What samples stand for until the next one is kept, in nanoseconds.
    pub left: u64,
    /// Samples in the interval.
    pub samples: u32,
    /// Periods are 2 to the power of this times as long.
    pub shift: u32,
}

impl Thinning {
    /// Rates of waits are looked at in intervals of this length.
    pub const INTERVAL_NS: u64 = 100_000_000;

    /// Periods do not become longer than that by themselves, so that windows still show what
    /// happened in them, and products fit.
    pub const MAX_PERIOD_NS: u64 = 1_000_000_000;

    /// Notes the time, before a sample: for each interval with few samples, or none, periods become
    /// shorter. `most` is the number of samples in an interval of this length.
    #[inline(always)]
    pub fn advance(&mut self, now_ns: u64, interval_ns: u64, most: u32) {
        let since_ns = now_ns.wrapping_sub(self.since_ns);
        if since_ns > interval_ns {
            let busy = u64::from(self.samples > most / 4);
            let quiet = since_ns.checked_div(interval_ns).unwrap_or(1) - busy;
            let quiet = if quiet < u64::from(self.shift) { quiet as u32 } else { self.shift };
            self.shift -= quiet;
            self.since_ns = now_ns;
            self.samples = 0;
        }
    }

    /// Whether the periods of this CPU are longer than they should be.
    #[inline(always)]
    pub const fn is_thinning(&self) -> bool {
        self.shift != 0
    }

    /// Notes a sample, and says what it stands for if it is kept. When there are too many, periods
    /// become longer. `period` is the shortest, `random` any number.
    #[inline(always)]
    pub fn keep(&mut self, weight: Weight, period: u64, most: u32, random: u32) -> Option<Weight> {
        let long = period << (self.shift & 31);
        let kept = if self.shift == 0 {
            weight
        } else {
            let Weight { value, count } = count_down(&mut self.left, weight.value, long, random)?;
            Weight { value, count: count * weight.count }
        };
        self.samples += 1;
        if self.samples > most && long * 2 <= Self::MAX_PERIOD_NS {
            self.shift += 1;
            self.samples = 0;
        }
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    const PERIOD: u64 = 10_000_000;

    /// Sums of what `lengths` are sampled as.
    fn sampled(lengths: impl Iterator<Item = u64>, mut left: u64) -> (u64, u64) {
        let mut random = 1u32;
        lengths.fold((0, 0), |(value, count), length| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let expected = is_sampled(left, length, PERIOD);
            let weight = count_down(&mut left, length, PERIOD, random);
            assert_eq!(weight.is_some(), expected);
            match weight {
                Some(weight) => (value + weight.value, count + weight.count),
                None => (value, count),
            }
        })
    }

    #[test]
    fn long_waits_are_exact() {
        assert_eq!(sampled([PERIOD, 7 * PERIOD + 3].into_iter(), 5), (8 * PERIOD + 3, 2));
    }

    #[test]
    fn time_of_short_waits_is_off_by_less_than_a_period() {
        for left in [1, PERIOD / 3, PERIOD] {
            // 5 to 300 us.
            let lengths = || (0..100_000u64).map(|i| 5_000 + i * 7919 % 295_000);
            let total: u64 = lengths().sum();
            let (value, count) = sampled(lengths(), left);
            assert!(value.abs_diff(total) <= PERIOD, "{value} of {total}");
            // Some 1500 samples of very different weights: the standard deviation is 3.7 %.
            assert!((80_000..120_000).contains(&count), "{count}");
        }
    }

    #[test]
    fn number_of_short_waits_is_right_in_the_mean() {
        // 3/4 of a period: stands for 1 or for 2 waits.
        let (value, count) = sampled((0..40_000).map(|_| PERIOD * 3 / 4), PERIOD / 2);
        assert!(value.abs_diff(30_000 * PERIOD) <= PERIOD);
        assert!((39_500..40_500).contains(&count), "{count}");
    }

    #[test]
    fn mixture_counts_each_wait_once() {
        let lengths =
            || (0..20_000u64).map(|i| if i % 100 == 0 { 3 * PERIOD } else { PERIOD / 50 });
        let (value, count) = sampled(lengths(), PERIOD / 2);
        let total: u64 = lengths().sum();
        assert!(value.abs_diff(total) <= PERIOD);
        assert!((19_500..20_500).contains(&count), "{count}");
    }

    /// Sums of what waits of one thread after the other are sampled as on a CPU whose shift
    /// follows `shifts`, and the number of samples. Each thread has as many waits as it says.
    fn thinned(shifts: impl Fn(usize) -> u32, lengths: &[u64], each: usize) -> (u64, u64, u64) {
        let mut thinning = Thinning { left: PERIOD / 2, ..Thinning::default() };
        let (mut left, mut random, mut sums) = (PERIOD / 3, 1u64, (0, 0, 0));
        for (number, length) in lengths.iter().enumerate() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let dice = (random >> 32) as u32;
            if number % each == 0 {
                left = 1 + ((u64::from(dice) * PERIOD) >> 32);
            }
            thinning.shift = shifts(number);
            let sample = count_down(&mut left, *length, PERIOD, dice);
            let sample = sample.and_then(|weight| thinning.keep(weight, PERIOD, u32::MAX, dice));
            if let Some(weight) = sample {
                sums = (sums.0 + weight.value, sums.1 + weight.count, sums.2 + 1);
            }
        }
        sums
    }

    fn mixed() -> Vec<u64> {
        (0..400_000u64).map(|i| PERIOD / 10 + i * 7919 % PERIOD).collect()
    }

    #[test]
    fn fewer_samples_give_the_same_sums() {
        let lengths = mixed();
        let total: u64 = lengths.iter().sum();
        let (_, _, all) = thinned(|_| 0, &lengths, usize::MAX);
        for shift in [1, 3, 6] {
            let (value, count, samples) = thinned(|_| shift, &lengths, usize::MAX);
            assert!(samples < (all >> shift) * 11 / 10, "{samples} of {all}");
            assert!(value.abs_diff(total) <= PERIOD << (shift + 1), "{value} of {total}");
            // Some 4000 samples at least.
            assert!((370_000..430_000).contains(&count), "{count}");
        }
    }

    #[test]
    fn periods_that_change_all_the_time_give_the_same_sums() {
        let lengths = mixed();
        let total: u64 = lengths.iter().sum();
        for every in [1, 7, 100] {
            let shifts = |number| (number / every % 5) as u32;
            let (value, count, _) = thinned(shifts, &lengths, usize::MAX);
            assert!(value.abs_diff(total) <= PERIOD << 5, "every {every}: {value} of {total}");
            assert!((370_000..430_000).contains(&count), "{count}");
        }
    }

    #[test]
    fn threads_that_wait_only_twice_count_for_no_more() {
        let lengths = vec![PERIOD / 40; 400_000];
        for shift in [0, 5] {
            let (value, count, samples) = thinned(|_| shift, &lengths, 2);
            // 10,000 samples, or some 300: three standard errors.
            let most = 3.0 / (samples as f64).sqrt();
            let error = |sum: u64, of: f64| (sum as f64 / of - 1.0).abs();
            assert!(error(value, 1e4 * PERIOD as f64) < most, "{value} in {samples}");
            assert!(error(count, 4e5) < most, "{count} in {samples}");
        }
    }

    #[test]
    fn waits_of_many_periods_are_exact_all_the_same() {
        let long = [PERIOD << 4, 33 * PERIOD + 7];
        assert_eq!(thinned(|_| 4, &long, usize::MAX), (49 * PERIOD + 7, 2, 2));
    }

    #[test]
    fn rate_of_samples_stays_below_what_is_wanted() {
        const MOST: u32 = 100;
        let mut thinning = Thinning { left: 1, ..Thinning::default() };
        let mut sum = 0;
        for interval in 1..100u64 {
            let mut samples = 0;
            // 5000 waits that would all be samples, and one in the last intervals.
            for wait in 0..if interval < 70 { 5000 } else { 1 } {
                let now_ns = interval * (Thinning::INTERVAL_NS + 2) + wait;
                thinning.advance(now_ns, Thinning::INTERVAL_NS, MOST);
                let weight = Weight { value: PERIOD, count: 1 };
                samples += u32::from(thinning.keep(weight, PERIOD, MOST, 0).is_some());
            }
            // When it has found its way.
            sum += if (20..70).contains(&interval) { samples } else { 0 };
        }
        let mean = sum / 50;
        assert!((MOST / 4..=MOST * 3 / 2).contains(&mean), "{mean} in an interval");
        assert_eq!(thinning.shift, 0);
    }

    #[test]
    fn periods_become_shorter_by_each_interval_with_few_samples() {
        let begin = Thinning { since_ns: 7, left: 1, samples: 1, shift: 6 };
        let after = |intervals: u64, samples| {
            let mut thinning = Thinning { samples, ..begin };
            let now_ns = begin.since_ns + intervals * Thinning::INTERVAL_NS + 1;
            thinning.advance(now_ns, Thinning::INTERVAL_NS, 100);
            thinning.shift
        };
        assert_eq!([after(0, 1), after(1, 1), after(3, 1), after(99, 1)], [6, 5, 3, 0]);
        // The first of them had many.
        assert_eq!([after(1, 50), after(3, 50), after(99, 50)], [6, 4, 0]);
    }

    #[test]
    fn detail_reads_back() {
        let wait = Wait {
            start_ns: 1,
            end_ns: 7,
            state: PREEMPTED | 2,
            flags: FLAG_RUN_QUEUE,
            syscall: -1,
            arguments: [3, 4],
            sp: 5,
            fp: 6,
            kernel_lock: u64::MAX,
            kernel_lock_flags: 0x3f,
        };
        assert_eq!(Wait::from_detail(&wait.to_detail()), wait);
    }
}
