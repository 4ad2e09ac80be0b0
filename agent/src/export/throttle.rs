//! Keeps a message that could repeat for hours from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Says yes at most once a minute. What it suppresses is not lost to the operator:
/// everything that is logged through it is also counted in a metric.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    last: Mutex<Option<Instant>>,
}

impl Throttle {
    const PERIOD: Duration = Duration::from_secs(60);

    /// Whether to log now.
    pub(super) fn allow(&self) -> bool {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= Self::PERIOD);
        if due {
            *last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_suppressed_for_a_minute() {
        let throttle = Throttle::default();
        let start = Instant::now();
        assert!(throttle.allow_at(start));
        assert!(!throttle.allow_at(start + Duration::from_secs(59)));
        assert!(throttle.allow_at(start + Duration::from_secs(60)));
    }
}
