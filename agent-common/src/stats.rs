//! Counters that the programs keep, one slot per (program, counter), on each CPU.
//!
//! Each early exit of a program increments one of these; the agent reads them by the same
//! names, so nothing is lost without a number that says so.

use crate::limits::{RUN_TIME_BUCKET_NS, RUN_TIME_BUCKETS};

/// The programs that keep counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// The CPU sampler.
    Cpu = 0,
    /// Forgets the layouts of processes that become other programs.
    Exec = 1,
    /// Notes when threads leave a CPU.
    SwitchOut = 2,
    /// Samples waits when threads are back on a CPU.
    SwitchIn = 3,
    /// Notes when waits end.
    Waking = 4,
    /// Lists waits that go on.
    Waiting = 5,
    /// Notes which of its own locks the kernel waits for.
    LockBegin = 6,
    /// Samples waits for them that did not leave the CPU.
    LockEnd = 7,
    /// Begins to follow new threads.
    NewTask = 8,
    /// Samples growth of memory.
    Growth = 9,
    /// Samples what is asked of allocators.
    Allocation = 10,
    /// Samples allocations that the library in a process has chosen.
    Allocated = 11,
    /// Notes when such objects are freed.
    Freed = 12,
    /// Tells of processes that the kernel ends for want of memory.
    OomVictim = 13,
    /// Samples requests to disks when they are made.
    BlockStart = 14,
    /// Notes when they are issued.
    BlockIssue = 15,
    /// Notes when they are completed.
    BlockDone = 16,
    /// Samples how long it takes to make files durable.
    Sync = 17,
    /// Follows connections from one state to the next.
    TcpState = 18,
    /// Samples what is sent on them.
    TcpSent = 19,
    /// Notes what is received.
    TcpReceived = 20,
    /// Notes what is sent again, and resets.
    TcpTrouble = 21,
    /// Samples when they are accepted.
    TcpAccepted = 22,
    /// Samples when they are opened.
    TcpOpened = 23,
}

impl Program {
    /// All programs, in slot order.
    pub const ALL: [Self; 24] = [
        Self::Cpu,
        Self::Exec,
        Self::SwitchOut,
        Self::SwitchIn,
        Self::Waking,
        Self::Waiting,
        Self::LockBegin,
        Self::LockEnd,
        Self::NewTask,
        Self::Growth,
        Self::Allocation,
        Self::Allocated,
        Self::Freed,
        Self::OomVictim,
        Self::BlockStart,
        Self::BlockIssue,
        Self::BlockDone,
        Self::Sync,
        Self::TcpState,
        Self::TcpSent,
        Self::TcpReceived,
        Self::TcpTrouble,
        Self::TcpAccepted,
        Self::TcpOpened,
    ];

    /// Whether a run may be preempted by another one on the same CPU: probes run in their task's own context.
    #[inline(always)]
    pub const fn is_preemptible(self) -> bool {
        matches!(self, Self::Allocation | Self::Allocated | Self::Freed | Self::TcpAccepted)
    }

    /// The name used in metrics and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Exec => "exec",
            Self::SwitchOut => "switch_out",
            Self::SwitchIn => "switch_in",
            Self::Waking => "waking",
            Self::Waiting => "waiting",
            Self::LockBegin => "lock_begin",
            Self::LockEnd => "lock_end",
            Self::NewTask => "new_task",
            Self::Growth => "growth",
            Self::Allocation => "allocation",
            Self::Allocated => "allocated",
            Self::Freed => "freed",
            Self::OomVictim => "oom_victim",
            Self::BlockStart => "block_start",
            Self::BlockIssue => "block_issue",
            Self::BlockDone => "block_done",
            Self::Sync => "sync",
            Self::TcpState => "tcp_state",
            Self::TcpSent => "tcp_sent",
            Self::TcpReceived => "tcp_received",
            Self::TcpTrouble => "tcp_trouble",
            Self::TcpAccepted => "tcp_accepted",
            Self::TcpOpened => "tcp_opened",
        }
    }
}

/// What a program counts.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Times the program was entered.
    Runs = 0,
    /// Runs that were timed: a random 1 in [`TIMED_RUN_INTERVAL`](crate::limits::TIMED_RUN_INTERVAL).
    TimedRuns = 1,
    /// Time spent in timed runs, in nanoseconds.
    TimedNs = 2,
    /// Samples handed to the ring buffer.
    Samples = 3,
    /// Samples lost because the ring buffer was full.
    RingFull = 4,
    /// Left early: the idle task.
    Idle = 5,
    /// Left early: not the process that was asked for.
    Filtered = 6,
    /// Left early: the scratch buffer could not be had. Never happens on a sane kernel.
    NoScratch = 7,
    /// Stacks that were copied because they met code whose rules are not loaded.
    StackCopies = 8,
    /// Stacks that should have been copied, beyond what is allowed a second.
    StackCopiesRefused = 9,
    /// Threads whose waits are not seen, as there are more than can be followed.
    Untracked = 10,
    /// Samples of waits when periods were longer than wanted, as there were too many samples.
    Thinned = 11,
}

impl Counter {
    /// All counters, in slot order.
    pub const ALL: [Self; 12] = [
        Self::Runs,
        Self::TimedRuns,
        Self::TimedNs,
        Self::Samples,
        Self::RingFull,
        Self::Idle,
        Self::Filtered,
        Self::NoScratch,
        Self::StackCopies,
        Self::StackCopiesRefused,
        Self::Untracked,
        Self::Thinned,
    ];
}

/// Slots of the per-CPU array.
pub const SLOTS: u32 = COUNTERS * PROGRAMS;

const COUNTERS: u32 = 16;
const PROGRAMS: u32 = 32;

const _: () =
    assert!(Counter::ALL.len() <= COUNTERS as usize && Program::ALL.len() <= PROGRAMS as usize);

/// Where a program keeps a counter.
pub const fn slot(program: Program, counter: Counter) -> u32 {
    program as u32 * COUNTERS + counter as u32
}

/// Slots of the histogram of run times.
pub const RUN_TIME_SLOTS: u32 = Program::ALL.len() as u32 * RUN_TIME_BUCKETS;

/// Where a program counts runs that took this long.
pub const fn run_time_slot(program: Program, run_ns: u64) -> u32 {
    let bucket = run_ns / RUN_TIME_BUCKET_NS;
    let last = RUN_TIME_BUCKETS - 1;
    let bucket = if bucket < last as u64 { bucket as u32 } else { last };
    program as u32 * RUN_TIME_BUCKETS + bucket
}
