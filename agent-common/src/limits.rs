//! The bounds of everything that loops or is copied in kernel space.

/// Frames of a kernel stack; what the kernel's own walker gives at most with its default
/// `kernel.perf_event_max_stack`.
pub const MAX_KERNEL_FRAMES: usize = 127;

/// Frames of a user stack. A deeper stack keeps its leaf side and is marked
/// [`Stop::DepthLimit`](crate::unwind::Stop::DepthLimit).
pub const MAX_USER_FRAMES: usize = 256;

/// Slots for addresses behind a sample's header: a power of two, so that BPF code can bound
/// an index with a mask.
pub const FRAME_SLOTS: usize = 512;

const _: () = assert!(FRAME_SLOTS.is_power_of_two());
const _: () = assert!(MAX_KERNEL_FRAMES + MAX_USER_FRAMES <= FRAME_SLOTS);

/// Bytes of a stack that are copied when it cannot be walked at once. Most stacks are
/// smaller; what lies above is lost.
pub const MAX_STACK_COPY: usize = STACK_COPY_PAGES * STACK_COPY_PAGE;

/// A copy begins this many bytes below the stack pointer: the red zone of x86_64, in which
/// OpenSSL's hash functions keep the address of their frame.
pub const STACK_COPY_BELOW: u64 = 128;

/// A stack is copied by what these pages have of it, up to one that is not there: stacks end where a page
/// does. The first one is mostly a part of a page.
pub const STACK_COPY_PAGES: usize = 5;

/// Pages are as large as this, or a multiple.
pub const STACK_COPY_PAGE: usize = 4096;

const _: () = assert!(STACK_COPY_PAGE.is_power_of_two());

/// Words of a stack that are read at once during a walk: a page, as most stacks of some depth
/// are read as a whole (200 frames cost 25 to 30 % less than with an eighth of that).
pub const STACK_WINDOW: usize = 512;

/// The same where that much is not there: near a stack's end.
pub const SMALL_STACK_WINDOW: usize = 64;

/// Addresses whose rules are remembered, on each CPU.
pub const CACHED_RULES: usize = 1024;

const _: () = assert!(CACHED_RULES.is_power_of_two());

/// Locks that are followed; the least recently used make room for others.
pub const MAX_LOCKS: u32 = 16 * 1024;

/// Requests to disks that are followed at the same time.
pub const MAX_REQUESTS: u32 = 16 * 1024;

/// Disks of which it is known who wanted a flush.
pub const MAX_DISKS: u32 = 256;

/// Tasks that make files durable at the same time.
pub const MAX_SYNCS: u32 = 4096;

/// TCP connections that are followed at the same time.
pub const MAX_CONNECTIONS: u32 = 32 * 1024;

/// Ports that somebody listened on when the agent began.
pub const MAX_LISTENERS: u32 = 4096;

/// Processes whose memory layout is known to the programs, at most.
pub const MAX_PROCESSES: u32 = 16 * 1024;

/// The record that tells the agent of an exec is older than the exec's end, where programs
/// see it, by less than this (seen: 63 us, 91 us at the 90th percentile, more under load).
pub const EXEC_RECORD_LEAD_NS: u64 = 5_000_000;

/// Pages that are allocated at a time: 1 MiB.
pub const CHUNK_PAGES: u32 = 256;

/// Chunks that there can be: 1 GiB.
pub const MAX_CHUNKS: u32 = 1024;

/// Buckets of the histogram of run times, each [`RUN_TIME_BUCKET_NS`] wide; the last one
/// holds all longer runs.
pub const RUN_TIME_BUCKETS: u32 = 512;

/// Width of a bucket, in nanoseconds.
pub const RUN_TIME_BUCKET_NS: u64 = 100;

/// One run in this many of each program is timed (a power of two).
pub const TIMED_RUN_INTERVAL: u32 = 64;

const _: () = assert!(TIMED_RUN_INTERVAL.is_power_of_two());

/// Numbers that say which keys maps do not have: 2 to the power of this, of eight bytes each.
pub const MARK_BITS: u32 = 12;

/// How many these are.
pub const MARKS: u32 = 1 << MARK_BITS;
