//! `oom`: says at once whom the kernel ends for want of memory.
//!
//! The tracepoint's first argument is the victim since Linux 6.9, and in some older ones that took
//! the change over; before it is the id of one of the victim's threads. So there are two programs, of
//! which the agent loads the one that fits.

use aya_ebpf::{bindings::task_struct, macros::btf_tracepoint, programs::BtfTracePointContext};
use everflame_agent_common::{event::Kind, stats::Program};

use crate::{
    sample::announce,
    stats,
    task::{pid, tid},
};

/// Runs when the kernel has decided.
#[btf_tracepoint(function = "mark_victim")]
fn oom_victim(ctx: BtfTracePointContext) -> i32 {
    let victim: *const task_struct = ctx.arg(0);
    stats::timed(Program::OomVictim, || {
        // SAFETY: the tracepoint's argument is a task.
        let (pid, tid) = unsafe { (pid(victim), tid(victim)) };
        announce(Program::OomVictim, Kind::OomVictim, pid, tid);
    });
    0
}

/// The same where the argument is a number.
#[btf_tracepoint(function = "mark_victim")]
fn oom_victim_by_id(ctx: BtfTracePointContext) -> i32 {
    let tid = ctx.arg::<u64>(0) as u32;
    stats::timed(Program::OomVictim, || {
        announce(Program::OomVictim, Kind::OomVictim, 0, tid);
    });
    0
}
