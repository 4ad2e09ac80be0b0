//! What is known of live heaps in a window: what was allocated, and what is held at its end.

use std::sync::Arc;

use everflame_agent_common::live::Allocated;

use super::{Aggregator, Frame, MappedRange};
use crate::collect::Sample;
use crate::identity::ProcessIdentity;
use crate::live::Weights;
use crate::process::{Process, allocator};

/// Sums of sampled objects with equal stacks. As their weights are no integers, neither are these: rounded
/// one by one, ten thousand small objects would be wrong by some per cent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HeapTotals {
    /// Objects allocated in the window.
    pub objects: f64,
    /// Their bytes.
    pub bytes: f64,
    /// Objects that are there at its end, whenever they were allocated.
    pub held_objects: f64,
    /// Their bytes.
    pub held_bytes: f64,
    /// How long the oldest of them has been there, in nanoseconds; 0 if none is.
    pub oldest_ns: u64,
}

impl HeapTotals {
    /// Adds those of other objects.
    pub fn add(&mut self, other: &Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.held_objects += other.held_objects;
        self.held_bytes += other.held_bytes;
        self.oldest_ns = self.oldest_ns.max(other.oldest_ns);
    }
}

impl Aggregator {
    /// Adds a sampled object that has been allocated, and says where: the frames that led to the
    /// allocator, and what they refer to.
    pub fn add_allocated(
        &mut self,
        sample: &Sample,
        allocated: &Allocated,
        process: &mut Process,
        identify: impl FnOnce(&mut Process) -> Arc<ProcessIdentity>,
    ) -> (Arc<[Frame]>, &[MappedRange]) {
        self.count(sample);
        self.window.objects += 1;
        let frames = self.frames(sample, process);
        let stack = beyond_the_library(&frames).into();
        let Weights { objects, bytes } = Weights::of(allocated.size, allocated.period);
        let totals = HeapTotals { objects, bytes, ..HeapTotals::default() };
        let (index, stack) = self.add_to_heap(sample.pid, process, identify, stack, &totals);
        self.window.processes[index].heap_period_bytes = allocated.period;
        (stack, &self.window.ranges)
    }

    /// Adds what a process holds of its live heap now. `ranges` says what frames refer to.
    pub fn add_held<'a>(
        &mut self,
        pid: u32,
        process: &mut Process,
        identify: impl Fn(&mut Process) -> Arc<ProcessIdentity>,
        held: impl IntoIterator<Item = (Arc<[Frame]>, HeapTotals)>,
        ranges: impl Fn(Frame) -> Option<&'a MappedRange>,
    ) {
        for (stack, totals) in held {
            let stack = stack
                .iter()
                .map(|&frame| {
                    let range = ranges(frame).map_or(Frame::UNMAPPED, |range| {
                        self.range(Arc::clone(&range.object), range.start, range.end)
                    });
                    Frame { range, address: frame.address }
                })
                .collect();
            self.add_to_heap(pid, process, &identify, stack, &totals);
        }
    }

    fn add_to_heap(
        &mut self,
        pid: u32,
        process: &mut Process,
        identify: impl FnOnce(&mut Process) -> Arc<ProcessIdentity>,
        stack: Arc<[Frame]>,
        totals: &HeapTotals,
    ) -> (usize, Arc<[Frame]>) {
        let index = self.process(pid, process, identify);
        let known = &mut self.window.processes[index];
        if known.allocator.is_none() {
            known.allocator = allocator(&process.mappings);
        }
        let stack = match known.heap.get_key_value(&stack) {
            Some((known, _)) => Arc::clone(known),
            None => {
                self.window.stack_bytes += size_of_val(&*stack) + size_of::<HeapTotals>();
                stack
            }
        };
        known.heap.entry(Arc::clone(&stack)).or_default().add(totals);
        (index, stack)
    }
}

/// The part of an allocation's stack that is the program's: the leaf lies in the library that
/// sampled it, and so does what called that, up to its `malloc`.
fn beyond_the_library(frames: &[Frame]) -> &[Frame] {
    let Some(leaf) = frames.first().filter(|leaf| leaf.range != Frame::UNMAPPED) else {
        return frames;
    };
    match frames.iter().position(|frame| frame.range != leaf.range) {
        Some(program) => &frames[program..],
        // Better than nothing.
        None => &frames[frames.len() - 1..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ranges: &[u32], expected: &[u32]) {
        let frames: Vec<Frame> = ranges.iter().map(|&range| Frame { range, address: 0 }).collect();
        let left: Vec<u32> = beyond_the_library(&frames).iter().map(|frame| frame.range).collect();
        assert_eq!(left, expected);
    }

    #[test]
    fn allocations_begin_where_the_program_calls_the_library() {
        check(&[7, 7, 7, 1, 2, 7, 1], &[1, 2, 7, 1]);
        check(&[7, 7], &[7]);
        check(&[], &[]);
        check(&[Frame::UNMAPPED, Frame::UNMAPPED, 1], &[Frame::UNMAPPED, Frame::UNMAPPED, 1]);
    }
}
