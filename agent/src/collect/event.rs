//! What the collector hands on: samples and what happened to processes, in order of time.

use std::cmp::Ordering;

use everflame_agent_common::allocation::Allocation;
use everflame_agent_common::block::{Done, Started};
use everflame_agent_common::event::{self, Kind, SampleHeader};
use everflame_agent_common::growth::Backing;
use everflame_agent_common::live::Allocated;
use everflame_agent_common::lock::Release;
use everflame_agent_common::tcp::{self, Happened};
use everflame_agent_common::unwind::{Registers, Stop};
use everflame_agent_common::wait::Wait;

use crate::process::{Mapping, Mappings, SeededProcess};

/// One sample as the kernel took it: addresses, not yet related to files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The profile it belongs to.
    pub kind: Kind,
    /// What it stands for, in the unit of its kind.
    pub value: u64,
    /// How many events it stands for.
    pub count: u64,
    /// Of waits: what for, and since when.
    pub wait: Option<Wait>,
    /// Of growth: of what.
    pub memory: Option<Backing>,
    /// Of allocations: how many bytes, and whose.
    pub allocation: Option<Allocation>,
    /// Of objects on a live heap: which one. When one is freed, only its address is known.
    pub allocated: Option<Box<Allocated>>,
    /// Of what concerns disks or TCP connections: which, and what became of it.
    pub io: Option<Box<Io>>,
    /// Of releases of locks: which, and when.
    pub release: Option<Release>,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Where it ran.
    pub cpu: u32,
    /// The thread's name at that time.
    pub thread_name: ThreadName,
    /// Kernel addresses, leaf first; empty for a sample in user mode.
    pub kernel: Box<[u64]>,
    /// User addresses, leaf first.
    pub user: Box<[u64]>,
    /// Why the kernel stack ends where it does.
    pub kernel_stop: Stop,
    /// Why the user stack ends where it does.
    pub user_stop: Stop,
    /// What the walk knew of the process's memory: what was mapped until then, on
    /// CLOCK_MONOTONIC.
    pub mapped_ns: u64,
    /// What is needed to go on, when it ends at [`Stop::NoTable`].
    pub stack_copy: Option<Box<StackCopy>>,
}

/// What a sample says of disks, or of TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// A request is made.
    Started(Started),
    /// It is completed, at a time on CLOCK_MONOTONIC.
    Done(Done, u64),
    /// A file has been made durable that is on this device, by its numbers.
    Synced {
        /// The upper half of the number, or all of it where there is only one.
        major: u32,
        /// The lower half.
        minor: u32,
    },
    /// A connection is opened, or something is sent on one.
    TcpStarted(tcp::Started),
    /// Something has happened to a connection.
    Tcp(Happened),
}

impl Io {
    fn read(kind: Kind, header: &SampleHeader) -> Option<Self> {
        match kind {
            Kind::BlockStart => Some(Self::Started(Started::from_detail(&header.detail))),
            Kind::BlockDone => Some(Self::Done(Done::from_detail(&header.detail), header.time_ns)),
            Kind::Sync => {
                let device = header.detail[0];
                Some(Self::Synced { major: (device >> 32) as u32, minor: device as u32 })
            }
            Kind::TcpStarted => Some(Self::TcpStarted(tcp::Started::from_detail(&header.detail))),
            Kind::Tcp => Happened::from_detail(&header.detail).map(Self::Tcp),
            _ => None,
        }
    }
}

/// The stack of a walk that met a file without a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackCopy {
    /// Of the frame that the walk got to, whose address is the last one.
    pub registers: Registers,
    /// Memory around and above its stack pointer.
    pub stack: Box<[u8]>,
}

impl Sample {
    /// One without stacks, about a thread.
    pub fn about(kind: Kind, pid: u32, tid: u32, thread_name: ThreadName) -> Self {
        Self {
            kind,
            value: 0,
            count: 0,
            wait: None,
            memory: None,
            allocation: None,
            allocated: None,
            io: None,
            release: None,
            pid,
            tid,
            cpu: 0,
            thread_name,
            kernel: Box::new([]),
            user: Box::new([]),
            kernel_stop: Stop::Absent,
            user_stop: Stop::Absent,
            mapped_ns: 0,
            stack_copy: None,
        }
    }

    /// Reads a record of the ring buffer. `None` if it is not one that this agent knows.
    pub fn read(record: &[u8]) -> Option<(u64, Self)> {
        let header = SampleHeader::read(record)?;
        let (kernel, user) = header.stacks(record)?;
        let kind = Kind::from_u16(header.kind)?;
        let allocation = match kind {
            Kind::Allocation => Some(Allocation::read(header.value, &header.detail)?),
            _ => None,
        };
        let sample = Self {
            kind,
            allocation,
            value: header.value,
            count: header.count,
            wait: matches!(kind, Kind::OffCpu | Kind::Waiting | Kind::Spinning)
                .then(|| Wait::from_detail(&header.detail)),
            memory: match kind {
                Kind::Growth => Backing::from_index(header.detail[0]),
                _ => None,
            },
            allocated: matches!(kind, Kind::Allocated | Kind::Freed)
                .then(|| Box::new(Allocated::from_detail(&header.detail))),
            io: Io::read(kind, &header).map(Box::new),
            release: (kind == Kind::Release).then(|| Release::from_detail(&header.detail)),
            pid: header.pid,
            tid: header.tid,
            cpu: header.cpu,
            thread_name: ThreadName(header.thread_name),
            kernel: kernel.collect(),
            user: user.collect(),
            kernel_stop: Stop::from_u8(header.kernel_stop),
            user_stop: Stop::from_u8(header.user_stop),
            mapped_ns: header.mapped_ns,
            stack_copy: event::StackCopy::read(&header, record).map(|copy| {
                Box::new(StackCopy { registers: copy.registers, stack: copy.stack.into() })
            }),
        };
        Some((header.time_ns, sample))
    }
}

impl Sample {
    /// Cuts off what a walk may have got wrong. When code is mapped, it takes some milliseconds
    /// until walks know; meanwhile they take it for what was mapped there before, if anything
    /// was. So what they found beyond a frame in such code is not to be trusted, while the frame
    /// itself is.
    pub fn cut_stale(&mut self, mappings: &Mappings) {
        if mappings.newest_ns() <= self.mapped_ns {
            return;
        }
        let is_new = |(depth, address): (usize, &u64)| {
            let within = address.wrapping_sub(u64::from(depth > 0));
            mappings.find(within).is_some_and(|mapping| mapping.mapped_ns > self.mapped_ns)
        };
        let Some(first) = self.user.iter().enumerate().position(is_new) else { return };
        // Where the walk ended by itself it has not got anything wrong.
        if first + 1 < self.user.len() {
            self.user = self.user[..=first].into();
            self.user_stop = Stop::Stale;
            self.stack_copy = None;
        }
    }
}

/// A thread's name as the kernel keeps it: at most 15 bytes, padded with zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ThreadName(pub [u8; 16]);

impl ThreadName {
    /// The name for people; bytes that are not UTF-8 are replaced.
    pub fn to_string_lossy(self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        String::from_utf8_lossy(&self.0[..end]).into_owned()
    }
}

/// Something that changes what is known about a process.
#[derive(Clone, Debug)]
pub enum ProcessEvent {
    /// A thread was renamed; with `exec`, the process became another program.
    Comm {
        /// Process id.
        pid: u32,
        /// Thread id.
        tid: u32,
        /// The new name.
        name: String,
        /// Whether an `execve` caused it.
        exec: bool,
    },
    /// Executable memory appeared.
    Mmap {
        /// Process id.
        pid: u32,
        /// Where, and from which file.
        mapping: Mapping,
    },
    /// A process was started by another, as its copy.
    Fork {
        /// The new process.
        pid: u32,
        /// The process that it is a copy of.
        parent: u32,
    },
    /// The last word of a process.
    Exit {
        /// Process id.
        pid: u32,
    },
    /// A process that ran before the agent did.
    Seed(SeededProcess),
}

/// What the collector yields.
#[derive(Clone, Debug)]
pub enum Event {
    /// A sample.
    Sample(Sample),
    /// A change to a process.
    Process(ProcessEvent),
    /// The kernel ends a process for want of memory.
    OutOfMemory {
        /// Process id.
        pid: u32,
    },
}

/// An event and its time on CLOCK_MONOTONIC. Orders by time; events of the same time keep
/// the order in which they were read.
#[derive(Debug)]
pub(super) struct Timed {
    /// Nanoseconds.
    pub time_ns: u64,
    /// Order of reading.
    pub sequence: u64,
    /// What happened.
    pub event: Event,
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.time_ns, self.sequence).cmp(&(other.time_ns, other.sequence))
    }
}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Timed {}
