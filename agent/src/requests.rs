//! Puts the beginning and the end of requests to disks together.
//!
//! What made a request is known when it begins, what became of it when it ends. Until then its sample
//! waits here, with its process as it was. No I/O.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use everflame_agent_common::block::{Done, Operation, Started};
use foldhash::fast::RandomState;

use crate::collect::{Io, Sample};

/// Requests under way, at most: more than any host's disks take at once. Those that the kernel has merged into
/// others never end.
const MAX_REQUESTS: usize = 32 * 1024;

/// Ends that wait for the stack of their beginning.
const MAX_EARLY: usize = 4096;

/// A request that has ended, with what is known of the process that made it.
pub type Ended<P> = (Sample, P);

/// Requests that are under way; `P` is what is known of a process.
#[derive(Debug)]
pub struct Requests<P> {
    /// By the kernel's address, which is another request's when it begins anew.
    begun: HashMap<u64, Begun<P>, RandomState>,
    /// What has ended of those whose stacks are being finished. Their addresses may have been used again.
    awaited: HashMap<Started, Vec<Sample>, RandomState>,
    forgotten: u64,
    unmatched: u64,
}

#[derive(Debug)]
struct Begun<P> {
    started: Started,
    sample: Sample,
    process: P,
}

impl<P> Default for Requests<P> {
    fn default() -> Self {
        Self { begun: HashMap::default(), awaited: HashMap::default(), forgotten: 0, unmatched: 0 }
    }
}

impl<P: Clone> Requests<P> {
    /// A request begins whose stack is being finished.
    pub fn await_stack(&mut self, started: Started) {
        if self.awaited.len() < MAX_EARLY {
            self.awaited.insert(started, Vec::new());
        }
    }

    /// A request begins, or its stack is there. Gives what has ended of it meanwhile.
    pub fn begin(
        &mut self,
        started: Started,
        sample: Sample,
        process: P,
    ) -> impl Iterator<Item = Ended<P>> {
        let ended = self.awaited.remove(&started).unwrap_or_default();
        let is_over = ended.iter().any(|end| !is_flush(end));
        let ended: Vec<Ended<P>> = ended
            .into_iter()
            .map(|end| (with_end(sample.clone(), &end), process.clone()))
            .collect();
        if !is_over {
            if self.begun.len() >= MAX_REQUESTS {
                // None of these is likely to be under way still.
                self.forgotten += self.begun.len() as u64;
                self.begun.clear();
            }
            // A stack that took long is of a request that is over, if its address is another's by now.
            let is_newest =
                self.begun.get(&started.id).is_none_or(|b| b.started.start_ns < started.start_ns);
            if is_newest {
                self.begun.insert(started.id, Begun { started, sample, process });
            }
        }
        ended.into_iter()
    }

    /// A request ends, or a flush that it wanted. `None` if its beginning is not known, or not yet.
    pub fn end(&mut self, end: Sample) -> Option<Ended<P>> {
        let Some(&Io::Done(Done { id, start_ns, .. }, _)) = end.io.as_deref() else { return None };
        let started = Started { id, start_ns };
        if let Entry::Occupied(begun) = self.begun.entry(id)
            && begun.get().started == started
        {
            if is_flush(&end) {
                let Begun { sample, process, .. } = begun.get();
                return Some((with_end(sample.clone(), &end), process.clone()));
            }
            let Begun { sample, process, .. } = begun.remove();
            return Some((with_end(sample, &end), process));
        }
        match self.awaited.get_mut(&started) {
            Some(ends) => ends.push(end),
            None => self.unmatched += 1,
        }
        None
    }

    /// Requests whose beginning was forgotten, as there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Requests that ended without that their beginning was seen: it was lost, or of a process that
    /// nobody has asked for.
    pub fn unmatched(&self) -> u64 {
        self.unmatched
    }
}

fn is_flush(end: &Sample) -> bool {
    matches!(end.io.as_deref(), Some(Io::Done(done, _)) if done.operation() == Operation::Flush)
}

/// The stack and the process of the beginning, with what the end says.
fn with_end(begun: Sample, end: &Sample) -> Sample {
    Sample { kind: end.kind, value: end.value, count: end.count, io: end.io.clone(), ..begun }
}

#[cfg(test)]
mod tests {
    use everflame_agent_common::event::Kind;

    use super::*;
    use crate::collect::ThreadName;

    fn sample(kind: Kind, io: Io) -> Sample {
        Sample {
            kind,
            value: 4096,
            count: 2,
            wait: None,
            memory: None,
            allocation: None,
            allocated: None,
            io: Some(Box::new(io)),
            release: None,
            pid: 7,
            tid: 8,
            cpu: 0,
            thread_name: ThreadName::default(),
            kernel: Box::new([]),
            user: Box::new([1]),
            kernel_stop: everflame_agent_common::unwind::Stop::End,
            user_stop: everflame_agent_common::unwind::Stop::End,
            mapped_ns: 0,
            stack_copy: None,
        }
    }

    fn begin(requests: &mut Requests<&'static str>, id: u64, start_ns: u64) -> usize {
        let started = Started { id, start_ns };
        let sample = sample(Kind::BlockStart, Io::Started(started));
        requests.begin(started, sample, "process").count()
    }

    fn end(requests: &mut Requests<&'static str>, id: u64, start_ns: u64, operation: u64) -> bool {
        let disk_name = [0; 32];
        let done = Done { id, start_ns, made_ns: 1, issue_ns: 2, operation, disk_name };
        let ended = requests.end(sample(Kind::BlockDone, Io::Done(done, 3)));
        if let Some((sample, _)) = &ended {
            assert_eq!((sample.kind, sample.pid, sample.user.len()), (Kind::BlockDone, 7, 1));
        }
        ended.is_some()
    }

    const READ: u64 = 0;
    const FLUSH: u64 = 2;

    #[test]
    fn end_finds_its_beginning_once() {
        let mut requests = Requests::default();
        assert_eq!(begin(&mut requests, 1, 10), 0);
        assert!(!end(&mut requests, 1, 9, READ));
        assert!(end(&mut requests, 1, 10, READ));
        assert!(!end(&mut requests, 1, 10, READ));
        assert_eq!(requests.unmatched(), 2);
    }

    #[test]
    fn flush_leaves_the_write_that_wanted_it() {
        let mut requests = Requests::default();
        begin(&mut requests, 1, 10);
        assert!(end(&mut requests, 1, 10, FLUSH));
        assert!(end(&mut requests, 1, 10, FLUSH));
        assert!(end(&mut requests, 1, 10, 1));
        assert!(!end(&mut requests, 1, 10, FLUSH));
    }

    #[test]
    fn address_that_is_used_again_is_another_request() {
        let mut requests = Requests::default();
        begin(&mut requests, 1, 10);
        begin(&mut requests, 1, 20);
        assert!(!end(&mut requests, 1, 10, READ));
        assert!(end(&mut requests, 1, 20, READ));
    }

    #[test]
    fn ends_wait_for_a_stack_that_is_being_finished() {
        let mut requests = Requests::default();
        requests.await_stack(Started { id: 1, start_ns: 10 });
        assert!(!end(&mut requests, 1, 10, FLUSH));
        assert!(!end(&mut requests, 1, 10, 1));
        // Its address is another request's by now.
        requests.await_stack(Started { id: 1, start_ns: 20 });
        assert!(!end(&mut requests, 1, 20, READ));
        assert_eq!(begin(&mut requests, 1, 10), 2);
        assert_eq!(begin(&mut requests, 1, 20), 1);
        assert!(!end(&mut requests, 1, 10, FLUSH));
        assert_eq!(requests.unmatched(), 1);
    }
}
