//! How long to wait before the next attempt to reach the collector.
//!
//! Exponential backoff with full jitter: attempt n waits a random time between 0 and
//! min(cap, first * 2^n). The randomness keeps a fleet that lost its collector at one
//! moment from coming back at one moment.
//! Source: "Exponential Backoff And Jitter", Amazon Architecture Blog, 2015.

use std::time::Duration;

/// The state of one client's retries.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, attempt: 0 }
    }

    /// The wait before the next attempt.
    pub(super) fn next_wait(&mut self) -> Duration {
        self.next_wait_at(fastrand::f64())
    }

    /// Call when an attempt got somewhere.
    pub(super) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// `fraction` is the random draw, in 0..1.
    fn next_wait_at(&mut self, fraction: f64) -> Duration {
        let factor = 1_u32.checked_shl(self.attempt).unwrap_or(u32::MAX);
        self.attempt = self.attempt.saturating_add(1);
        self.first.saturating_mul(factor).min(self.cap).mul_f64(fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest_waits(backoff: &mut Backoff, count: usize) -> Vec<u128> {
        (0..count).map(|_| backoff.next_wait_at(1.0).as_millis()).collect()
    }

    #[test]
    fn waits_double_up_to_the_cap_and_start_over_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
        let expected = [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000];
        assert_eq!(longest_waits(&mut backoff, 9), expected);
        backoff.reset();
        assert_eq!(longest_waits(&mut backoff, 2), [250, 500]);
    }

    #[test]
    fn the_draw_spreads_the_wait_down_to_nothing() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        assert_eq!(backoff.next_wait_at(0.0), Duration::ZERO);
        assert_eq!(backoff.next_wait_at(0.5), Duration::from_secs(1));
    }

    #[test]
    fn an_outage_of_any_length_stays_at_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
        backoff.attempt = u32::MAX - 1;
        assert_eq!(longest_waits(&mut backoff, 3), [30000; 3]);
    }
}
