//! Puts together what begins with a stack and goes on without one.
//!
//! Who makes a request, or opens a connection, is known when it begins; what becomes of it is seen later, in
//! whatever the interrupt met. Until then the sample of the beginning waits here, with its process as it was.
//! No I/O.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::collect::Sample;

/// Ends that wait for the stack of their beginning.
const MAX_EARLY: usize = 4096;

/// Something that has happened, with what is known of the process that began it.
pub type Ended<P> = (Sample, P);

/// Which beginning something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Start {
    /// The kernel's address of it, which is another one's when that begins anew.
    pub id: u64,
    /// When it began, on CLOCK_MONOTONIC.
    pub start_ns: u64,
}

/// What has become of something that was looked up.
#[derive(Debug)]
pub enum Found<P> {
    /// It has the stack and the process of its beginning.
    Joined(Ended<P>),
    /// It waits for the stack, or nobody has asked for it.
    Taken,
    /// Its beginning is not known.
    Unknown(Sample),
}

/// What has begun; `P` is what is known of a process.
#[derive(Debug)]
pub struct Starts<P> {
    /// By the kernel's address.
    recent: Map<P>,
    /// What was not heard of since there were too many.
    older: Map<P>,
    /// What has happened to those whose stacks are being finished. Their addresses may have been used again.
    awaited: HashMap<Start, Vec<(Sample, bool)>, RandomState>,
    /// How many there may be.
    most: usize,
    forgotten: u64,
    unmatched: u64,
}

type Map<P> = HashMap<u64, Begun<P>, RandomState>;

#[derive(Debug)]
struct Begun<P> {
    start_ns: u64,
    /// `None`: nobody has asked for it.
    begun: Option<(Sample, P)>,
}

impl<P: Clone> Starts<P> {
    /// Remembers `most` beginnings at the same time.
    pub fn new(most: usize) -> Self {
        Self {
            recent: HashMap::default(),
            older: HashMap::default(),
            awaited: HashMap::default(),
            most,
            forgotten: 0,
            unmatched: 0,
        }
    }

    /// Something begins whose stack is being finished.
    pub fn await_stack(&mut self, start: Start) {
        if self.awaited.len() < MAX_EARLY {
            self.awaited.insert(start, Vec::new());
        }
    }

    /// Something begins, or its stack is there. Gives what has happened to it meanwhile.
    pub fn begin(
        &mut self,
        start: Start,
        sample: Sample,
        process: P,
    ) -> impl Iterator<Item = Ended<P>> {
        let ended = self.awaited.remove(&start).unwrap_or_default();
        let is_over = ended.iter().any(|(_, is_last)| *is_last);
        let ended: Vec<Ended<P>> = ended
            .into_iter()
            .map(|(end, _)| (with_end(sample.clone(), end), process.clone()))
            .collect();
        if !is_over {
            self.insert(start, Some((sample, process)));
        }
        ended.into_iter()
    }

    /// Something begins that nobody has asked for.
    pub fn ignore(&mut self, start: Start) {
        self.insert(start, None);
    }

    fn insert(&mut self, Start { id, start_ns }: Start, begun: Option<(Sample, P)>) {
        // A stack that took long is of something that is over, if its address is another's by now.
        let known = self.recent.get(&id).or_else(|| self.older.get(&id));
        if known.is_some_and(|known| known.start_ns >= start_ns) {
            return;
        }
        self.older.remove(&id);
        if self.recent.len() >= self.most / 2 {
            // What is neither begun nor heard of until there are as many again is not likely to go on.
            self.forgotten += self.older.len() as u64;
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(id, Begun { start_ns, begun });
    }

    /// Something has happened. `is_last`: nothing more will.
    pub fn happen(&mut self, start: Start, end: Sample, is_last: bool) -> Found<P> {
        let Start { id, start_ns } = start;
        if let Some(old) = self.older.remove(&id) {
            self.recent.entry(id).or_insert(old);
        }
        if self.recent.get(&id).is_some_and(|known| known.start_ns == start_ns) {
            let begun = if is_last {
                self.recent.remove(&id).and_then(|known| known.begun)
            } else {
                self.recent.get(&id).and_then(|known| known.begun.clone())
            };
            return match begun {
                Some((sample, process)) => Found::Joined((with_end(sample, end), process)),
                None => Found::Taken,
            };
        }
        if let Some(ends) = self.awaited.get_mut(&start) {
            ends.push((end, is_last));
            return Found::Taken;
        }
        self.unmatched += end.count;
        Found::Unknown(end)
    }

    /// Beginnings that were forgotten, as there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// What has happened without that its beginning was seen: it was lost.
    pub fn unmatched(&self) -> u64 {
        self.unmatched
    }
}

/// The stack and the process of the beginning, with what the end says.
fn with_end(begun: Sample, end: Sample) -> Sample {
    Sample { kind: end.kind, value: end.value, count: end.count, io: end.io, ..begun }
}

#[cfg(test)]
mod tests {
    use everflame_agent_common::event::Kind;

    use super::*;
    use crate::collect::ThreadName;

    fn sample(kind: Kind) -> Sample {
        Sample { user: Box::new([1]), count: 2, ..Sample::about(kind, 7, 8, ThreadName::default()) }
    }

    type Names = Starts<&'static str>;

    fn begin(starts: &mut Names, id: u64, start_ns: u64) -> usize {
        starts.begin(Start { id, start_ns }, sample(Kind::BlockStart), "process").count()
    }

    /// Whether it was joined.
    fn happen(starts: &mut Names, id: u64, start_ns: u64, is_last: bool) -> bool {
        let end = Sample { user: Box::new([]), ..sample(Kind::BlockDone) };
        match starts.happen(Start { id, start_ns }, end, is_last) {
            Found::Joined((sample, _)) => {
                assert_eq!((sample.kind, sample.pid), (Kind::BlockDone, 7));
                assert_eq!(sample.user.len(), 1);
                true
            }
            Found::Taken | Found::Unknown(_) => false,
        }
    }

    #[test]
    fn end_finds_its_beginning_once() {
        let mut starts = Starts::new(100);
        assert_eq!(begin(&mut starts, 1, 10), 0);
        assert!(!happen(&mut starts, 1, 9, true));
        assert!(happen(&mut starts, 1, 10, true));
        assert!(!happen(&mut starts, 1, 10, true));
        // Each stands for two.
        assert_eq!(starts.unmatched(), 4);
    }

    #[test]
    fn what_is_not_the_end_leaves_the_beginning() {
        let mut starts = Starts::new(100);
        begin(&mut starts, 1, 10);
        assert!(happen(&mut starts, 1, 10, false));
        assert!(happen(&mut starts, 1, 10, false));
        assert!(happen(&mut starts, 1, 10, true));
        assert!(!happen(&mut starts, 1, 10, false));
    }

    #[test]
    fn address_that_is_used_again_is_another_beginning() {
        let mut starts = Starts::new(100);
        begin(&mut starts, 1, 10);
        begin(&mut starts, 1, 20);
        assert!(!happen(&mut starts, 1, 10, true));
        assert!(happen(&mut starts, 1, 20, true));
    }

    #[test]
    fn ends_wait_for_a_stack_that_is_being_finished() {
        let mut starts = Starts::new(100);
        starts.await_stack(Start { id: 1, start_ns: 10 });
        assert!(!happen(&mut starts, 1, 10, false));
        assert!(!happen(&mut starts, 1, 10, true));
        // Its address is another's by now.
        starts.await_stack(Start { id: 1, start_ns: 20 });
        assert!(!happen(&mut starts, 1, 20, true));
        assert_eq!(begin(&mut starts, 1, 10), 2);
        assert_eq!(begin(&mut starts, 1, 20), 1);
        assert!(!happen(&mut starts, 1, 10, false));
        assert_eq!(starts.unmatched(), 2);
    }

    #[test]
    fn what_nobody_asked_for_is_not_missed() {
        let mut starts: Names = Starts::new(100);
        starts.ignore(Start { id: 1, start_ns: 10 });
        assert!(!happen(&mut starts, 1, 10, true));
        assert_eq!(starts.unmatched(), 0);
    }

    #[test]
    fn what_is_heard_of_is_not_forgotten() {
        let mut starts = Starts::new(8);
        begin(&mut starts, 1000, 1);
        for id in 0..100 {
            begin(&mut starts, id, 10);
            assert!(happen(&mut starts, 1000, 1, false));
        }
        assert!(!happen(&mut starts, 0, 10, true));
        assert!(happen(&mut starts, 99, 10, true));
        assert!(starts.forgotten() >= 90, "{}", starts.forgotten());
    }
}
