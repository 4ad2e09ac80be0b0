//! Whether records of processes are told of one by one.
//!
//! To wake the reader takes the process that caused the record some microseconds, which nobody minds when a
//! program starts now and then; but a shell script or a compiler run starts hundreds a second, of some ten records each.
//! So beyond a rate nobody is woken any more, and records are read at regular times instead.

use std::time::{Duration, Instant};

/// Over which records are counted while they are told of.
const LOOK: Duration = Duration::from_millis(100);

/// In such a time: with more the reader is not woken any more.
const MANY: usize = 64;

/// Over which they are counted while they are not.
const LULL: Duration = Duration::from_secs(1);

/// In such a time: with fewer it is woken again.
const FEW: usize = 320;

/// How often records are read while nobody is told of them, or while each time there are some.
const READ_INTERVAL: Duration = Duration::from_millis(2);

/// Counts records.
#[derive(Debug)]
pub(super) struct Pace {
    is_silent: bool,
    since: Instant,
    records: usize,
    read: Instant,
    /// Whether to look once more, whatever was told: others may have come meanwhile of which nobody was told.
    goes_on: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { is_silent: false, since: now, records: 0, read: now, goes_on: false }
    }

    /// Whether nobody is to be woken.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// When records are to be read, whether or not anybody is told of them.
    pub(super) fn next_read(&self) -> Option<Instant> {
        (self.is_silent || self.goes_on).then(|| self.read + READ_INTERVAL)
    }

    /// Takes note of records that were read `now`. Whether [`Self::is_silent`] is another than before.
    pub(super) fn read(&mut self, records: usize, now: Instant) -> bool {
        self.read = now;
        let before = self.is_silent;
        let is_over = now - self.since >= if before { LULL } else { LOOK };
        if before {
            self.records += records;
            if is_over {
                self.is_silent = self.records >= FEW;
                self.begin(now);
            }
        } else {
            // What came long ago does not count.
            if is_over {
                self.begin(now);
            }
            self.records += records;
            if self.records >= MANY {
                self.is_silent = true;
                self.begin(now);
            }
        }
        self.goes_on = records > 0 || self.is_silent != before;
        self.is_silent != before
    }

    /// Counts anew.
    fn begin(&mut self, now: Instant) {
        (self.since, self.records) = (now, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_records_are_read_at_regular_times_until_there_are_few() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pace = Pace::new(start);
        // Some programs start, over some time.
        for ms in [0, 50, 110, 160] {
            assert!(!pace.read(30, at(ms)), "{ms}");
            assert_eq!(pace.next_read(), Some(at(ms + 2)));
            assert!(!pace.read(0, at(ms + 2)), "{ms}");
            assert_eq!(pace.next_read(), None);
        }
        // Many.
        assert!(pace.read(40, at(170)));
        assert!(pace.is_silent());
        assert_eq!(pace.next_read(), Some(at(172)));
        // They go on for a while, and then less so.
        assert!(!pace.read(400, at(1170)));
        assert!(!pace.read(200, at(2000)));
        assert!(pace.read(0, at(2170)));
        // Once more: what came before somebody is told again.
        assert_eq!(pace.next_read(), Some(at(2172)));
        assert!(!pace.read(0, at(2172)));
        assert_eq!(pace.next_read(), None);
    }
}
