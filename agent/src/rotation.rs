//! When windows on allocators are open, and on which processes.
//!
//! All processes take turns, in order of their ids. A window ends when its time is over or, before that, when what it
//! has cost the processes exceeds the budget: the runs of the program, by how long those take that are timed, and
//! what the kernel takes for each to get there.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::collect::ProgramStats;
use crate::process::Generation;

/// What a trap into the kernel and the way back take, in nanoseconds, beside the program: seen on
/// a virtual machine with Linux 6.18. That of a place where the kernel single-steps is twenty times as much.
pub const TRAP_NS: u64 = 600;

/// How windows follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationConfig {
    /// How long a window is open.
    pub window: Duration,
    /// From one's beginning to the next one's.
    pub interval: Duration,
    /// Processes that it is open on at a time.
    pub processes: usize,
    /// CPU time that one may cost all of them together.
    pub budget: Duration,
}

/// What has come of them, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RotationStats {
    /// Windows that were opened, one for each process.
    pub opened: u64,
    /// Times that windows were closed early as they cost too much.
    pub stopped_for_cost: u64,
    /// Processes without an allocator that is known.
    pub without_allocator: u64,
    /// Processes that could not be probed, most as they were gone.
    pub failed: u64,
    /// What windows have cost, in nanoseconds.
    pub cost_ns: u64,
    /// How long windows were open, in nanoseconds.
    pub open_ns: u64,
    /// Samples that were left out, as an allocator had called itself.
    pub nested: u64,
    /// Windows that are open.
    pub open: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing.
    Wait,
    /// Open windows on other processes.
    Open,
    /// Close those that are open.
    Close,
}

/// Decides that.
#[derive(Debug)]
pub(crate) struct Rotation {
    config: RotationConfig,
    next: Instant,
    open_since: Option<Instant>,
    /// What had been spent when the present window was opened.
    spent_before_ns: u64,
    spent_ns: u64,
    /// The last process that has had its turn.
    last: u32,
    /// Programs that had no allocator when they were looked at, so that each is counted once.
    without: HashMap<u32, Generation>,
    pub(crate) stats: RotationStats,
}

impl Rotation {
    /// The first window opens at once.
    pub(crate) fn new(config: RotationConfig) -> Self {
        Self {
            config,
            next: Instant::now(),
            open_since: None,
            spent_before_ns: 0,
            spent_ns: 0,
            last: 0,
            without: HashMap::new(),
            stats: RotationStats::default(),
        }
    }

    /// What is to be done `now`, after the program has run as often as `program` says.
    pub(crate) fn turn(&mut self, now: Instant, program: &ProgramStats) -> Turn {
        self.spent_ns =
            program.estimated_run_time_ns().saturating_add(program.runs.saturating_mul(TRAP_NS));
        let Some(since) = self.open_since else {
            return if now >= self.next { Turn::Open } else { Turn::Wait };
        };
        let budget_ns = u64::try_from(self.config.budget.as_nanos()).unwrap_or(u64::MAX);
        let is_over = now >= since + self.config.window;
        let costs_too_much = self.spent_ns.saturating_sub(self.spent_before_ns) > budget_ns;
        self.stats.stopped_for_cost += u64::from(costs_too_much && !is_over);
        self.stats.cost_ns = self.spent_ns;
        if is_over || costs_too_much { Turn::Close } else { Turn::Wait }
    }

    /// Takes note that windows have been opened.
    pub(crate) fn opened(&mut self, now: Instant) {
        self.next = now + self.config.interval;
        self.open_since = Some(now);
        self.spent_before_ns = self.spent_ns;
    }

    /// Takes note that all windows have been closed.
    pub(crate) fn closed(&mut self, now: Instant) {
        let open = self.open_since.take().map_or(Duration::ZERO, |since| now - since);
        self.stats.open_ns += u64::try_from(open.as_nanos()).unwrap_or(u64::MAX);
    }

    /// The processes whose turn it is, in order: more than are wanted, as some may not have an allocator. Those that
    /// had none are among them: it may be a library that had yet to be loaded.
    pub(crate) fn candidates(
        &mut self,
        running: impl Iterator<Item = (u32, Generation)>,
    ) -> Vec<(u32, Generation)> {
        let this = std::process::id();
        let running: BTreeMap<u32, Generation> = running.filter(|(pid, _)| *pid != this).collect();
        self.without.retain(|pid, known| running.get(pid) == Some(known));
        let mut candidates: Vec<(u32, Generation)> = running.into_iter().collect();
        let after = candidates.partition_point(|(pid, _)| *pid <= self.last);
        candidates.rotate_left(after);
        candidates
    }

    /// How many processes have a window at a time.
    pub(crate) fn processes(&self) -> usize {
        self.config.processes
    }

    /// Takes note of a process that has had its turn.
    pub(crate) fn took(&mut self, pid: u32) {
        self.last = pid;
    }

    /// Takes note of a program that has no allocator.
    pub(crate) fn has_none(&mut self, pid: u32, generation: Generation) {
        let known = self.without.insert(pid, generation);
        self.stats.without_allocator += u64::from(known != Some(generation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::ProcessEvent;
    use crate::process::ProcessTable;

    fn rotation() -> Rotation {
        Rotation::new(RotationConfig {
            window: Duration::from_secs(2),
            interval: Duration::from_secs(60),
            processes: 2,
            budget: Duration::from_millis(100),
        })
    }

    fn runs(runs: u64) -> ProgramStats {
        // A microsecond each, with the trap.
        ProgramStats { runs, timed_runs: 10, timed_ns: 4000, ..ProgramStats::default() }
    }

    #[test]
    fn windows_have_their_time() {
        let mut rotation = rotation();
        let start = Instant::now();
        assert_eq!(rotation.turn(start, &runs(0)), Turn::Open);
        rotation.opened(start);
        assert_eq!(rotation.turn(start + Duration::from_secs(1), &runs(10)), Turn::Wait);
        assert_eq!(rotation.turn(start + Duration::from_secs(2), &runs(20)), Turn::Close);
        rotation.closed(start + Duration::from_secs(2));
        assert_eq!(rotation.turn(start + Duration::from_secs(59), &runs(20)), Turn::Wait);
        assert_eq!(rotation.turn(start + Duration::from_secs(60), &runs(20)), Turn::Open);
        assert_eq!((rotation.stats.stopped_for_cost, rotation.stats.open_ns), (0, 2_000_000_000));
    }

    #[test]
    fn window_that_costs_too_much_is_closed() {
        let mut rotation = rotation();
        let start = Instant::now();
        for window in 0..2 {
            let before = window * 150_000;
            rotation.turn(start, &runs(before));
            rotation.opened(start);
            assert_eq!(rotation.turn(start, &runs(before + 90_000)), Turn::Wait);
            assert_eq!(rotation.turn(start, &runs(before + 110_000)), Turn::Close);
            rotation.closed(start);
        }
        assert_eq!(rotation.stats.stopped_for_cost, 2);
        assert_eq!(rotation.stats.cost_ns, 260_000_000);
    }

    #[test]
    fn processes_take_turns() {
        let mut table = ProcessTable::default();
        let mut of = |pid| {
            table.apply(0, ProcessEvent::Fork { pid, parent: 1 });
            (pid, table.get_mut(pid).generation)
        };
        let running: Vec<_> = [30, 10, 20].map(&mut of).into();
        let mut rotation = rotation();
        let pids = |rotation: &mut Rotation| -> Vec<u32> {
            let candidates = rotation.candidates(running.iter().copied());
            candidates.into_iter().map(|(pid, _)| pid).collect()
        };
        assert_eq!(pids(&mut rotation), [10, 20, 30]);
        rotation.took(10);
        assert_eq!(pids(&mut rotation), [20, 30, 10]);
        rotation.took(20);
        assert_eq!(pids(&mut rotation), [30, 10, 20]);
    }

    #[test]
    fn process_without_an_allocator_is_counted_once_and_looked_at_again() {
        let mut table = ProcessTable::default();
        table.apply(0, ProcessEvent::Fork { pid: 10, parent: 1 });
        let generation = table.get_mut(10).generation;
        let mut rotation = rotation();
        for _ in 0..2 {
            assert_eq!(rotation.candidates([(10, generation)].into_iter()).len(), 1);
            rotation.has_none(10, generation);
        }
        assert_eq!(rotation.stats.without_allocator, 1);
    }
}
