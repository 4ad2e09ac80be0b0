//! What a thread that is off the CPU waits for, and whether anybody should care.
//!
//! A pure stage without I/O: it is given what the kernel noted of a wait ([`Wait`]) and the
//! names of functions, and answers
//!
//! - [`classify`]: the [`Reason`], the `reason` label of a sample;
//! - [`lock_use`]: whether a futex wait is contention for a lock or a condition ([`LockUse`]);
//! - [`is_idle`]: whether the thread merely waits for work, the `idle` label.
//!
//! Each answer comes out of a table with one row per function or system call, so that a kernel
//! or a runtime that names things differently costs a row: kernel functions in
//! `kernel_functions`, system calls in `syscalls`, functions of programs in `lock_use` and
//! `idle`. Names of kernel functions are preferred, as only they tell a read from a disk from
//! one from a socket; system calls decide where the kernel hides its symbols.
//!
//! Equal stacks give equal answers, and one answer costs some ten microseconds: ask once for
//! each distinct stack.

mod idle;
mod kernel_functions;
#[cfg(test)]
mod live_tests;
mod lock_use;
mod names;
mod reason;
mod sampled;
mod syscalls;

pub use idle::is_idle;
pub use lock_use::{LockUse, is_condition_release, is_lock_contention, lock_use};
pub use reason::{Reason, classify};
pub(crate) use syscalls::FUTEX_WAIT;

pub use sampled::{Labels, is_contention, labels, scheduler_frames, tracepoint_frames};

/// Bits of the kernel's `task_struct.__state` (`include/linux/sched.h`), as `sched_switch` sees
/// it. The same from Linux 4.14 to 6.18.
pub mod task_state {
    /// `TASK_UNINTERRUPTIBLE`: state D. Set in killable and idle waits as well.
    pub const UNINTERRUPTIBLE: u32 = 0x2;
    /// `__TASK_STOPPED` and `__TASK_TRACED`: held by job control or a debugger.
    pub const STOPPED_OR_TRACED: u32 = 0x4 | 0x8;
    /// `TASK_NOLOAD`: the wait does not count as load. Together with
    /// [`UNINTERRUPTIBLE`] it is `TASK_IDLE`, a kernel thread without work.
    pub const NOLOAD: u32 = 0x400;
    /// `TASK_RTLOCK_WAIT`: a spinlock of a `PREEMPT_RT` kernel.
    pub const RTLOCK_WAIT: u32 = 0x1000;
    /// `TASK_FROZEN`: held by the freezer of a control group or of suspend.
    pub const FROZEN: u32 = 0x8000;
}

/// A time off the CPU, as it was noted when the thread left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// The kernel's state bits, see [`task_state`]. 0 is a thread that could have run on.
    pub task_state: u32,
    /// The kernel took the CPU away.
    pub is_preempted: bool,
    /// The time between wakeup and switch-in rather than the wait before it.
    pub is_runqueue: bool,
    /// A thread of the kernel, without memory of its own.
    pub is_kernel_thread: bool,
    /// The number of the system call that it is in, by this machine's own (64-bit) table. None:
    /// not in a system call, such as in a page fault; None also for 32-bit programs, whose
    /// numbers mean other calls.
    pub syscall: Option<u32>,
    /// The arguments of the system call, as they were at its entry.
    pub args: [u64; 6],
}

impl Wait {
    /// Whether the wait counts as load: state D, but not a kernel thread without work.
    fn is_uninterruptible(&self) -> bool {
        self.task_state & (task_state::UNINTERRUPTIBLE | task_state::NOLOAD)
            == task_state::UNINTERRUPTIBLE
    }
}
