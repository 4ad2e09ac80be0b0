//! Stacks whose walk in the kernel met a file without a table, and that are finished here.

use std::sync::Arc;
use std::time::Instant;

use everflame_agent_common::limits::STACK_COPY_BELOW;

use super::{Collector, Sample, StackCopy};
use crate::process::Mappings;
use crate::unwind::{Finished, Unfinished};

impl Collector {
    /// Has the rest of a sample's stack walked, which is then among [`Self::finished`] under
    /// this number. False if that is not possible.
    pub fn finish(&self, id: u64, sample: &mut Sample, mappings: &Arc<Mappings>) -> bool {
        let copy = sample.stack_copy.take();
        self.walk(id, copy, sample.user.to_vec(), mappings)
    }

    /// Has a stack walked from a copy of it on; `frames` are those that are known.
    pub fn walk(
        &self,
        id: u64,
        copy: Option<Box<StackCopy>>,
        frames: Vec<u64>,
        mappings: &Arc<Mappings>,
    ) -> bool {
        let Some(copy) = copy else { return false };
        let unfinished = Unfinished {
            id,
            mappings: Arc::clone(mappings),
            frames,
            stack_start: copy.registers.sp.wrapping_sub(STACK_COPY_BELOW),
            registers: copy.registers,
            stack: copy.stack,
        };
        matches!(self.unwinder.finish(unfinished), Ok(true))
    }

    /// Stacks that have been finished.
    pub fn finished(&self) -> impl Iterator<Item = Finished> + '_ {
        self.unwinder.finished()
    }

    /// The next of them, waited for until `deadline`.
    pub fn next_finished(&self, deadline: Instant) -> Option<Finished> {
        self.unwinder.next_finished(deadline)
    }
}
