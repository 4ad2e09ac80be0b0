//! Divides waits for locks among the releases that ended them.
//!
//! A thread that gets a lock late may have waited for several others, one after the other. At
//! each release of the lock the part of its wait ends that is the fault of the thread that
//! releases it.

use std::collections::HashMap;
use std::sync::Arc;

use everflame_agent_common::lock::LockKey;
use foldhash::fast::RandomState;

use crate::aggregate::{StackKey, Totals};

/// The waits for locks and the releases in one window of time.
#[derive(Debug, Default)]
pub(crate) struct Contention {
    releases: HashMap<LockKey, Vec<(u64, Arc<StackKey>)>, RandomState>,
    waits: Vec<LockWait>,
}

/// A sampled wait.
#[derive(Debug)]
pub(crate) struct LockWait {
    /// The process, as an index that the caller understands.
    pub process: usize,
    pub lock: LockKey,
    pub waiter: Arc<StackKey>,
    /// On CLOCK_MONOTONIC.
    pub begin_ns: u64,
    pub end_ns: u64,
    /// What the sample stands for.
    pub totals: Totals,
}

/// A part of a wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub process: usize,
    pub waiter: Arc<StackKey>,
    /// The stack that ended it; `None` if it has not been seen, or goes on.
    pub releaser: Option<Arc<StackKey>>,
    pub totals: Totals,
}

impl Contention {
    pub(crate) fn release(&mut self, lock: LockKey, time_ns: u64, by: Arc<StackKey>) {
        self.releases.entry(lock).or_default().push((time_ns, by));
    }

    pub(crate) fn wait(&mut self, wait: LockWait) {
        self.waits.push(wait);
    }

    /// Divides all waits. The number of waits that a sample stands for goes to the last part.
    pub(crate) fn divide(mut self) -> impl Iterator<Item = Part> {
        for releases in self.releases.values_mut() {
            releases.sort_by_key(|(time_ns, _)| *time_ns);
        }
        let Self { releases, waits } = self;
        waits.into_iter().flat_map(move |wait| {
            let known = releases.get(&wait.lock).map_or(&[][..], Vec::as_slice);
            divide(&wait, known)
        })
    }
}

/// `releases` in order of time.
fn divide(wait: &LockWait, releases: &[(u64, Arc<StackKey>)]) -> Vec<Part> {
    let from = releases.partition_point(|(time_ns, _)| *time_ns <= wait.begin_ns);
    let within = releases[from..].iter().take_while(|(time_ns, _)| *time_ns <= wait.end_ns);
    let ends = within.map(|(time_ns, by)| (*time_ns, Some(by)));
    let length = wait.end_ns.saturating_sub(wait.begin_ns).max(1);
    // What the sample stands for up to a moment of the wait, so that all parts make up the whole.
    let value_until = |time_ns: u64| {
        let until = u128::from(time_ns.saturating_sub(wait.begin_ns).min(length));
        let value = u128::from(wait.totals.value) * until / u128::from(length);
        u64::try_from(value).unwrap_or(u64::MAX)
    };
    let mut parts: Vec<Part> = Vec::new();
    let mut before = 0;
    for (end_ns, releaser) in ends.chain([(wait.begin_ns + length, None)]) {
        let until = value_until(end_ns);
        if until > before {
            parts.push(Part {
                process: wait.process,
                waiter: Arc::clone(&wait.waiter),
                releaser: releaser.cloned(),
                totals: Totals { count: 0, value: until - before },
            });
        }
        before = until;
    }
    if let Some(last) = parts.last_mut() {
        last.totals.count = wait.totals.count;
    }
    parts
}

#[cfg(test)]
mod tests {
    use everflame_agent_common::event::Kind;

    use super::*;
    use crate::collect::ThreadName;

    fn stack(tid: u32) -> Arc<StackKey> {
        Arc::new(StackKey {
            kind: Kind::OffCpu,
            tid,
            thread_name: ThreadName([0; 16]),
            cpu: 0,
            kernel: Box::default(),
            user: Box::default(),
            wait: None,
            memory: None,
            allocator: None,
            io: None,
        })
    }

    /// Divides a wait from 100 to 200 and yields (who ended the part, its value, its count).
    fn parts(value: u64, releases: &[(u64, u32)]) -> Vec<(Option<u32>, u64, u64)> {
        let mut contention = Contention::default();
        for (time_ns, tid) in releases {
            contention.release(LockKey::new(8, 1), *time_ns, stack(*tid));
        }
        contention.release(LockKey::new(16, 1), 150, stack(99));
        contention.wait(LockWait {
            process: 0,
            lock: LockKey::new(8, 1),
            waiter: stack(7),
            begin_ns: 100,
            end_ns: 200,
            totals: Totals { count: 3, value },
        });
        let part = |part: Part| {
            let by = part.releaser.map(|stack| stack.tid);
            (by, part.totals.value, part.totals.count)
        };
        contention.divide().map(part).collect()
    }

    #[test]
    fn each_part_goes_to_the_release_that_ends_it() {
        let releases = [(90, 1), (200, 4), (160, 3), (130, 2), (210, 5)];
        assert_eq!(parts(100, &releases), [(Some(2), 30, 0), (Some(3), 30, 0), (Some(4), 40, 3)]);
    }

    #[test]
    fn sample_that_stands_for_more_than_its_wait_is_divided_in_proportion() {
        let expected = [(Some(2), 299, 0), (Some(3), 698, 3)];
        assert_eq!(parts(997, &[(130, 2), (200, 3)]), expected);
    }

    #[test]
    fn what_nobody_was_seen_to_end_is_nobodys() {
        assert_eq!(parts(100, &[]), [(None, 100, 3)]);
        assert_eq!(parts(100, &[(150, 2)]), [(Some(2), 50, 0), (None, 50, 3)]);
    }
}
