//! Stacks that wait for a table: bounded in number and in what they hold.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::finish::Unfinished;
use crate::process::{Mapping, Mappings};

/// Stacks, at most. Each can have 20 KiB.
const MAX_STACKS: usize = 2048;

/// What they hold, at most. A process that generates code may change its mappings between
/// any two samples, and each stack keeps those of its own moment: up to a megabyte.
const MAX_BYTES: usize = 48 << 20;

/// The stacks, in order of age.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    stacks: VecDeque<(Instant, Box<Unfinished>)>,
    /// How many stacks share mappings, by their address, which they keep from being used again.
    sharers: HashMap<usize, usize>,
    bytes: usize,
}

impl Waiting {
    /// Adds a stack that is waiting since a moment, and yields those that have to give up
    /// because there are too many: the oldest.
    pub(super) fn push(
        &mut self,
        since: Instant,
        stack: Box<Unfinished>,
    ) -> impl Iterator<Item = Box<Unfinished>> + use<'_> {
        let sharers = self.sharers.entry(Arc::as_ptr(&stack.mappings).addr()).or_default();
        if *sharers == 0 {
            self.bytes += mappings_bytes(&stack.mappings);
        }
        *sharers += 1;
        self.bytes += stack_bytes(&stack);
        self.stacks.push_back((since, stack));
        std::iter::from_fn(|| {
            let is_full = self.stacks.len() > MAX_STACKS || self.bytes > MAX_BYTES;
            is_full.then(|| self.pop())?
        })
    }

    /// The oldest stack, if it has been waiting since before `moment`.
    pub(super) fn pop_before(&mut self, moment: Option<Instant>) -> Option<Box<Unfinished>> {
        let (since, _) = self.stacks.front()?;
        moment.is_some_and(|moment| *since < moment).then(|| self.pop())?
    }

    /// All, with the moments since when they wait.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (Instant, Box<Unfinished>)> + use<> {
        std::mem::take(self).stacks.into_iter()
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.stacks.len()
    }

    /// What they hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn pop(&mut self) -> Option<Box<Unfinished>> {
        let (_, stack) = self.stacks.pop_front()?;
        self.bytes -= stack_bytes(&stack);
        let mappings = Arc::as_ptr(&stack.mappings).addr();
        if let Some(sharers) = self.sharers.get_mut(&mappings) {
            *sharers -= 1;
            if *sharers == 0 {
                self.sharers.remove(&mappings);
                self.bytes -= mappings_bytes(&stack.mappings);
            }
        }
        Some(stack)
    }
}

fn stack_bytes(stack: &Unfinished) -> usize {
    // Frames are added only to a stack that is not in here.
    size_of::<Unfinished>() + stack.stack.len() + size_of_val(stack.frames.as_slice())
}

fn mappings_bytes(mappings: &Mappings) -> usize {
    mappings.len() * size_of::<Mapping>()
}

#[cfg(test)]
mod tests {
    use everflame_agent_common::unwind::Registers;

    use super::*;
    use crate::process::Backing;

    fn mappings(count: u64) -> Arc<Mappings> {
        let mut mappings = Mappings::default();
        for start_avma in (0..count).map(|n| n * 0x2000) {
            mappings.insert(Mapping {
                start_avma,
                end_avma: start_avma + 0x1000,
                file_offset: 0,
                backing: Backing::Anonymous,
                path: Arc::from(""),
                mapped_ns: 0,
            });
        }
        Arc::new(mappings)
    }

    fn stack(id: u64, mappings: &Arc<Mappings>, bytes: usize) -> Box<Unfinished> {
        Box::new(Unfinished {
            id,
            mappings: Arc::clone(mappings),
            frames: vec![1],
            registers: Registers::default(),
            stack_start: 0,
            stack: vec![0; bytes].into(),
        })
    }

    #[test]
    fn mappings_of_each_moment_count_once_and_the_oldest_gives_up() {
        let mut waiting = Waiting::default();
        let shared = mappings(10_000);
        let now = Instant::now();
        for id in 0..1000 {
            assert_eq!(waiting.push(now, stack(id, &shared, 0)).count(), 0, "shared");
        }
        let mut given_up = Vec::new();
        for id in 1000..1200 {
            let own = Arc::new(Mappings::clone(&shared));
            given_up.extend(waiting.push(now, stack(id, &own, 0)).map(|stack| stack.id));
            assert!(waiting.bytes() <= MAX_BYTES);
        }
        assert!(given_up.len() > 1000, "all that share, and some of their own");
        assert!(given_up.is_sorted());
        assert_eq!(waiting.len(), 1200 - given_up.len());
        let left: Vec<u64> = waiting.take_all().map(|(_, stack)| stack.id).collect();
        assert_eq!((left[0], left.last()), (given_up.len() as u64, Some(&1199)));
        assert_eq!((waiting.len(), waiting.bytes()), (0, 0));
    }

    #[test]
    fn number_of_stacks_is_bounded() {
        let mut waiting = Waiting::default();
        let mappings = mappings(1);
        let now = Instant::now();
        let given_up: usize =
            (0..2050).map(|id| waiting.push(now, stack(id, &mappings, 64)).count()).sum();
        assert_eq!((given_up, waiting.len()), (2, MAX_STACKS));
    }

    #[test]
    fn nothing_is_held_once_the_last_has_left() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        for id in 0..3 {
            assert_eq!(waiting.push(start, stack(id, &mappings(5), 100)).count(), 0);
        }
        assert!(waiting.pop_before(Some(start)).is_none(), "not before");
        let later = start + std::time::Duration::from_nanos(1);
        let left: Vec<u64> =
            std::iter::from_fn(|| waiting.pop_before(Some(later))).map(|stack| stack.id).collect();
        assert_eq!(left, [0, 1, 2]);
        assert_eq!(waiting.bytes(), 0);
    }
}
