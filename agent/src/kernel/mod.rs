//! What the running kernel can do and where it keeps things, found by asking it: distributions
//! carry features back to old versions and switch off what new ones have, so a version number
//! says little.
//!
//! [`KernelFeatures::probe`] tries each feature, [`pt_regs_location`] reads the layout of the
//! kernel's own types.

mod btf;
mod features;
mod probe;

use rustix::process::{Resource, Rlimit, setrlimit};
use tracing::debug;

pub use btf::{
    BlockTracepoints, BtfError, FileLocation, MemoryLocation, PtRegsLocation, QueueLocation,
    SchedulerClockLocation, TaskLocation, TcpHooks, VictimArgument, block_layout, cpu_time_offset,
    file_location, memory_location, pt_regs_location, task_location, tcp_layout, victim_argument,
};
pub use features::{Feature, KernelFeatures, MissingFeature, Support, Unwinder, WaitEnd};

/// The function that a task runs first when it is on a CPU again. Compilers give it other names
/// when they specialise it.
pub const FINISH_TASK_SWITCH: [&str; 2] = ["finish_task_switch", "finish_task_switch.isra.0"];

/// Kernels before 5.11 charge programs and maps to RLIMIT_MEMLOCK. Failure is not fatal: newer
/// kernels do not, and on the others loading fails with an error of its own.
pub fn lift_memlock_limit() {
    if let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        debug!(%error, "cannot lift RLIMIT_MEMLOCK");
    }
}
