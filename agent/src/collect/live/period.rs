//! Sets how many bytes the library in a process takes one sample in.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;

use tracing::debug;

/// How often it is tried: a process that has just been told of is still about to map its data.
const TRIES: u32 = 20;

/// Where a process has its period.
type Place = (u32, u64);

/// The periods that were written, to be written back in the end: the processes go on without us.
#[derive(Debug)]
pub(super) struct Periods {
    period: u64,
    before: HashMap<Place, u64>,
    waiting: HashMap<Place, u32>,
}

impl Periods {
    pub(super) fn new(period: u64) -> Self {
        Self { period, before: HashMap::new(), waiting: HashMap::new() }
    }

    /// Sets the one of a process, now or soon.
    pub(super) fn set(&mut self, pid: u32, avma: u64) {
        self.waiting.insert((pid, avma), TRIES);
        self.retry();
    }

    /// Sets those that could not be set yet.
    pub(super) fn retry(&mut self) {
        for (place, tries) in std::mem::take(&mut self.waiting) {
            match write(place, self.period) {
                Ok(before) => {
                    // The last one that is not ours: the library's own start may have set it anew.
                    if before != self.period {
                        self.before.insert(place, before);
                    }
                    // The library's own start may be yet to come, and set it from the environment.
                    if tries > TRIES / 2 {
                        self.waiting.insert(place, tries - 1);
                    }
                }
                Err(_) if tries > 1 => {
                    self.waiting.insert(place, tries - 1);
                }
                Err(error) => {
                    let (pid, _) = place;
                    debug!(pid, %error, "the sampling period of this process stays as it is");
                }
            }
        }
    }

    /// A process has become a copy of another one, and has its period.
    pub(super) fn copied(&mut self, pid: u32, parent: u32) {
        let of_parent = self.before.iter().filter(|((other, _), _)| *other == parent);
        let copies: Vec<(Place, u64)> =
            of_parent.map(|((_, avma), before)| ((pid, *avma), *before)).collect();
        self.before.extend(copies);
    }

    /// The process is gone, or another program.
    pub(super) fn forget(&mut self, pid: u32) {
        self.before.retain(|(other, _), _| *other != pid);
        self.waiting.retain(|(other, _), _| *other != pid);
    }
}

impl Drop for Periods {
    fn drop(&mut self) {
        for (place, before) in self.before.drain() {
            // Fails when the process is gone, and then nobody needs it. What is not what was written is not
            // ours: another program may have the process's id.
            if read(place).is_ok_and(|now| now == self.period) {
                let _ = write(place, before);
            }
        }
    }
}

/// A word of a process's memory.
fn read((pid, avma): Place) -> io::Result<u64> {
    let mut word = [0; 8];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut word, avma)?;
    Ok(u64::from_ne_bytes(word))
}

/// Writes a word into a process's memory; returns what was there.
fn write(place: Place, word: u64) -> io::Result<u64> {
    let (pid, avma) = place;
    let before = read(place)?;
    let memory = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"))?;
    memory.write_all_at(&word.to_ne_bytes(), avma)?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn period_is_set_and_is_in_the_end_what_it_was() {
        static PERIOD: AtomicU64 = AtomicU64::new(7);
        let mut periods = Periods::new(32);
        periods.set(std::process::id(), (&raw const PERIOD).addr() as u64);
        assert_eq!(PERIOD.load(Ordering::Relaxed), 32);
        // A process that is gone, and one that has nothing there.
        periods.set(u32::MAX, 0x1000);
        periods.set(std::process::id(), 8);
        periods.forget(u32::MAX);
        drop(periods);
        assert_eq!(PERIOD.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn copy_of_a_process_gets_back_what_that_one_had() {
        static PERIOD: AtomicU64 = AtomicU64::new(7);
        // A parent that was written to, and is gone.
        let mut periods = Periods::new(32);
        let avma = (&raw const PERIOD).addr() as u64;
        periods.before.insert((u32::MAX, avma), 7);
        periods.copied(std::process::id(), u32::MAX);
        PERIOD.store(32, Ordering::Relaxed);
        drop(periods);
        assert_eq!(PERIOD.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn what_somebody_else_has_written_since_stays() {
        static PERIOD: AtomicU64 = AtomicU64::new(7);
        let mut periods = Periods::new(32);
        periods.set(std::process::id(), (&raw const PERIOD).addr() as u64);
        PERIOD.store(64, Ordering::Relaxed);
        drop(periods);
        assert_eq!(PERIOD.load(Ordering::Relaxed), 64);
    }
}
