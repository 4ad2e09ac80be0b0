//! What a CPU sample stands for.
//!
//! A tick says which thread is on a CPU, and each tick would stand for one period if ticks met every
//! thread as often as its share of the CPU. They do not. On a virtual machine a timer fires some
//! microseconds after its time, and those of a thread that runs for microseconds only, between an
//! interrupt and the next wait, find somebody else there: of a thread that reads from a disk a
//! fourth of the ticks is missing, in every profiler that counts them. And of ticks that are due
//! while a CPU takes none, all but one are.
//!
//! The scheduler keeps an exact account of each thread's time on CPUs. So a sample stands for a
//! period and a share of what its thread is owed by then: time on the account that earlier samples do
//! not stand for. Over many samples those of a thread stand for the time that it ran; which code
//! they found is not touched. A share only, as ticks of a thread that runs now and then come at
//! random: to pay all of it at once would double the variance of a stack's part in the whole. Of a
//! thread with a handful of samples they stand for hardly more than their periods.

/// What is kept of a thread; a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// The scheduler's account at the last sample, in nanoseconds; 0 before the first.
    pub accounted_ns: u64,
    /// How much of it earlier samples do not stand for; less than 0 if they stand for more.
    pub owed_ns: i64,
}

const _: () = assert!(size_of::<CpuTime>() == 16);

impl CpuTime {
    /// One part of this many of what is owed is paid with each sample. Adds 1/32 to the variance of
    /// what a sample stands for where ticks come at random.
    const SHARE: i64 = 16;

    /// More than that is not owed, to either side: more than the account ever lags. On a CPU
    /// without scheduler ticks (`nohz_full`) it is looked at once a second.
    const MOST_NS: i64 = 4_000_000_000;

    /// Notes a sample, and says what it stands for, in nanoseconds: from half a period to two.
    ///
    /// `account_ns` is the scheduler's account, which may lag.
    #[inline(always)]
    pub fn sampled(&mut self, account_ns: u64, period_ns: u64) -> u64 {
        let period = period_ns as i64;
        let is_first = self.accounted_ns == 0;
        let ran_ns = account_ns.wrapping_sub(self.accounted_ns) as i64;
        self.accounted_ns = account_ns | 1;
        if is_first {
            return period_ns;
        }
        let owed_ns = self.owed_ns + ran_ns.clamp(0, Self::MOST_NS) - period;
        let owed_ns = owed_ns.clamp(-Self::MOST_NS, Self::MOST_NS);
        // A shift: programs cannot divide signed numbers.
        let share_ns = owed_ns >> Self::SHARE.trailing_zeros();
        // Not `clamp`, which can panic where bounds are not constants.
        let paid_ns = share_ns.max(-period / 2).min(period);
        self.owed_ns = owed_ns - paid_ns;
        (period + paid_ns) as u64
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    const PERIOD_NS: u64 = 10_000_000;

    /// What samples stand for that come after each of these times on a CPU.
    fn weights(ran_ns: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut time = CpuTime::default();
        let mut account_ns = 123_456_789;
        let sampled = |ran_ns| {
            account_ns = u64::wrapping_add(account_ns, ran_ns);
            time.sampled(account_ns, PERIOD_NS)
        };
        ran_ns.into_iter().map(sampled).collect()
    }

    /// Uniform numbers in (0, 1].
    fn random() -> impl Iterator<Item = f64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::from_fn(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            Some(((state >> 11) + 1) as f64 / (1u64 << 53) as f64)
        })
    }

    /// Times between the ticks of a thread that is on a CPU now and then.
    fn at_random(mean_ns: u64, ticks: usize) -> Vec<u64> {
        random().take(ticks).map(|random| (-random.ln() * mean_ns as f64) as u64).collect()
    }

    #[track_caller]
    fn check_sum(ran_ns: &[u64], tolerance: f64) {
        let sum: u64 = weights(ran_ns.iter().copied()).iter().sum();
        let truth: u64 = ran_ns.iter().sum();
        let error = sum as f64 / truth as f64 - 1.0;
        assert!(error.abs() < tolerance, "{error}");
    }

    #[test]
    fn busy_thread_pays_a_period_with_each_sample() {
        assert_eq!(weights([PERIOD_NS; 100]), [PERIOD_NS; 100]);
    }

    #[test]
    fn first_sample_stands_for_a_period_however_long_the_thread_has_run() {
        assert_eq!(weights([0]), [PERIOD_NS]);
        assert_eq!(weights([1 << 50]), [PERIOD_NS]);
    }

    #[test]
    fn ticks_that_are_missed_are_made_up_for() {
        // A fourth is missing: without the account the sum would be 25 % too small.
        check_sum(&at_random(PERIOD_NS * 4 / 3, 2000), 0.01);
        check_sum(&at_random(PERIOD_NS, 2000), 0.01);
        check_sum(&at_random(PERIOD_NS * 4 / 5, 2000), 0.01);
    }

    #[test]
    fn account_that_moves_in_steps_is_as_good() {
        for periods in [4, 40, 100] {
            let mut steps = [0; 8000];
            let each = steps.iter_mut().skip(periods - 1).step_by(periods);
            each.for_each(|step| *step = periods as u64 * PERIOD_NS);
            check_sum(&steps, 0.02);
        }
    }

    #[test]
    fn little_noise_is_added_where_ticks_come_at_random() {
        let weights = weights(at_random(PERIOD_NS, 20_000));
        let deviation = |weight: &u64| (*weight as f64 / PERIOD_NS as f64 - 1.0).powi(2);
        let variance = weights.iter().map(deviation).sum::<f64>() / weights.len() as f64;
        assert!((0.02..0.045).contains(&variance), "{variance}");
    }

    #[test]
    fn no_sample_stands_for_more_than_two_periods_or_less_than_half_of_one() {
        let odd = [1 << 62, u64::MAX, 0, 1 << 40, u64::MAX / 2, 1].into_iter().cycle().take(300);
        for weight in weights(odd.chain([0; 100])) {
            assert!((PERIOD_NS / 2..=PERIOD_NS * 2).contains(&weight), "{weight}");
        }
        assert_eq!(weights([0; 200]).last(), Some(&(PERIOD_NS / 2)));
        assert_eq!(weights([PERIOD_NS * 100; 200]).last(), Some(&(PERIOD_NS * 2)));
        // What is too much is not paid for ever.
        let after = weights([PERIOD_NS * 100; 200].into_iter().chain([PERIOD_NS; 2000]));
        assert!(after.last() < Some(&(PERIOD_NS * 11 / 10)), "{after:?}");
    }
}
