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

/// One run in this many of each program is timed (a power of two).
pub const TIMED_RUN_INTERVAL: u32 = 64;

const _: () = assert!(TIMED_RUN_INTERVAL.is_power_of_two());
