//! Puts events from many per-CPU buffers into one order of time.
//!
//! Samples and process records come from different buffers, but a sample must be seen after
//! the mapping that it lies in. All carry the same clock. The collector reads the samples
//! first and the process records after them, so every record older than the moment at which
//! reading began is here when it ends. A sample carries the time at which the program began
//! to take it; one that is being taken just then comes with the next reading, which is late
//! by the microseconds of a stack walk.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::event::{Event, Timed};

/// Events that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Ordering {
    waiting: BinaryHeap<Reverse<Timed>>,
    sequence: u64,
}

impl Ordering {
    /// Takes an event in any order.
    pub(super) fn push(&mut self, time_ns: u64, event: Event) {
        self.sequence += 1;
        self.waiting.push(Reverse(Timed { time_ns, sequence: self.sequence, event }));
    }

    /// The oldest event, if it is not younger than `horizon_ns`.
    pub(super) fn pop_until(&mut self, horizon_ns: u64) -> Option<(u64, Event)> {
        if self.waiting.peek()?.0.time_ns > horizon_ns {
            return None;
        }
        self.waiting.pop().map(|Reverse(timed)| (timed.time_ns, timed.event))
    }

    /// Number of waiting events.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::event::ProcessEvent;

    fn exit(pid: u32) -> Event {
        Event::Process(ProcessEvent::Exit { pid })
    }

    #[test]
    fn events_come_out_by_time_and_equal_times_in_order_of_reading() {
        let mut ordering = Ordering::default();
        for (time_ns, pid) in [(30, 1), (10, 2), (20, 3), (10, 4), (40, 5)] {
            ordering.push(time_ns, exit(pid));
        }
        let mut order = Vec::new();
        while let Some((time_ns, Event::Process(ProcessEvent::Exit { pid }))) =
            ordering.pop_until(30)
        {
            order.push((time_ns, pid));
        }
        assert_eq!(order, [(10, 2), (10, 4), (20, 3), (30, 1)]);
        assert_eq!(ordering.len(), 1, "what is younger than the horizon waits");
    }
}
