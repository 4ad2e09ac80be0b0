//! Stacks that live objects were allocated by: each one once, with the files that it leads through.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::aggregate::{Frame, MappedRange};

/// What a stack takes beside its frames.
const STACK_BYTES: usize = 64;

/// What identifies a range: its object, by address, its start and its end.
type RangeKey = (usize, u64, u64);

/// All stacks, and what their frames refer to.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    stacks: HashSet<Arc<[Frame]>, RandomState>,
    /// `None` where a range was that no stack leads through any more.
    ranges: Vec<Option<MappedRange>>,
    index: HashMap<RangeKey, u32, RandomState>,
    free: Vec<u32>,
    bytes: usize,
}

impl Stacks {
    /// The stack with these frames, which refer to these ranges of a window.
    pub(super) fn intern(&mut self, frames: &[Frame], ranges: &[MappedRange]) -> Arc<[Frame]> {
        let frames: Box<[Frame]> = frames
            .iter()
            .map(|frame| Frame { range: self.place(frame.range, ranges), address: frame.address })
            .collect();
        if let Some(known) = self.stacks.get(&*frames) {
            return Arc::clone(known);
        }
        let stack: Arc<[Frame]> = frames.into();
        self.bytes += bytes(&stack);
        self.stacks.insert(Arc::clone(&stack));
        stack
    }

    /// What a frame refers to.
    pub(super) fn range(&self, frame: Frame) -> Option<&MappedRange> {
        self.ranges.get(usize::try_from(frame.range).ok()?)?.as_ref()
    }

    /// Forgets stacks that nobody else holds, and files that no stack leads through.
    pub(super) fn collect(&mut self) {
        self.stacks.retain(|stack| Arc::strong_count(stack) > 1);
        self.bytes = self.stacks.iter().map(bytes).sum();
        let used: HashSet<u32, RandomState> =
            self.stacks.iter().flat_map(|stack| stack.iter()).map(|frame| frame.range).collect();
        self.index.retain(|_, range| {
            let is_used = used.contains(range);
            if !is_used && let Ok(at) = usize::try_from(*range) {
                self.ranges[at] = None;
                self.free.push(*range);
            }
            is_used
        });
    }

    /// Memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The index here of a window's range.
    fn place(&mut self, range: u32, ranges: &[MappedRange]) -> u32 {
        let range = usize::try_from(range).ok().and_then(|range| ranges.get(range));
        let Some(range) = range else { return Frame::UNMAPPED };
        let key = (Arc::as_ptr(&range.object).addr(), range.start, range.end);
        *self.index.entry(key).or_insert_with(|| {
            let range = Some(range.clone());
            match self.free.pop() {
                Some(at) => {
                    if let Some(place) =
                        usize::try_from(at).ok().and_then(|at| self.ranges.get_mut(at))
                    {
                        *place = range;
                    }
                    at
                }
                None => {
                    self.ranges.push(range);
                    u32::try_from(self.ranges.len() - 1).unwrap_or(Frame::UNMAPPED)
                }
            }
        })
    }
}

fn bytes(stack: &Arc<[Frame]>) -> usize {
    size_of_val(&**stack) + STACK_BYTES
}
