//! Entry points of the programs that follow threads from switch to switch.
//!
//! Apart from the others, as kernels before 5.17 would refuse the maps that they use.

use aya_ebpf::{
    bindings::task_struct,
    macros::{btf_tracepoint, kprobe},
    programs::{BtfTracePointContext, ProbeContext},
};
use everflame_agent_common::stats::Program;

use crate::{kernel_lock, stats, wait};

/// Runs when a thread is there that has not run yet. Its first argument is the thread.
#[btf_tracepoint(function = "task_newtask")]
fn new_task(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    stats::timed(Program::NewTask, || {
        // SAFETY: the tracepoint's argument is a task.
        let _ = unsafe { wait::follow(Program::NewTask, task) };
    });
    0
}

/// Runs in each switch, when the outgoing task is still the current one. Its arguments are
/// (preempted, previous task, next task, state of the previous task).
#[btf_tracepoint(function = "sched_switch")]
fn switch_out(ctx: BtfTracePointContext) -> i32 {
    let (preempted, task) = (ctx.arg::<u64>(0) & 1 != 0, ctx.arg::<*mut task_struct>(1));
    let state = ctx.arg::<u64>(3) as u32;
    stats::timed(Program::SwitchOut, || {
        // SAFETY: the tracepoint's argument is a task.
        unsafe { wait::switch_out(task, preempted, state) };
    });
    0
}

/// Runs at the end of the scheduler, in the task that it has chosen. Its argument says
/// whether that is another than before.
#[btf_tracepoint(function = "sched_exit_tp")]
fn switch_in(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<u64>(0) & 1 != 0 {
        stats::timed(Program::SwitchIn, || wait::switch_in(&ctx));
    }
    0
}

/// The same where the scheduler has no such tracepoint: on entry to `finish_task_switch`,
/// which the chosen task runs.
#[kprobe]
fn switch_in_kprobe(ctx: ProbeContext) -> u32 {
    stats::timed(Program::SwitchIn, || wait::switch_in(&ctx));
    0
}

/// Runs when somebody is about to wake a task, which is the argument.
#[btf_tracepoint(function = "sched_waking")]
fn waking(ctx: BtfTracePointContext) -> i32 {
    let task: *mut task_struct = ctx.arg(0);
    stats::timed(Program::Waking, || {
        // SAFETY: the tracepoint's argument is a task.
        unsafe { wait::waking(&ctx, task) };
    });
    0
}

/// Runs when one of the kernel's own locks is wanted that is not free. Its arguments are (lock, flags).
#[btf_tracepoint(function = "contention_begin")]
fn lock_begin(ctx: BtfTracePointContext) -> i32 {
    let (lock, flags) = (ctx.arg(0), ctx.arg::<u64>(1) as u32);
    stats::timed(Program::LockBegin, || kernel_lock::begin(&ctx, lock, flags));
    0
}

/// Runs when the lock is there, or given up. Its first argument is the lock.
#[btf_tracepoint(function = "contention_end")]
fn lock_end(ctx: BtfTracePointContext) -> i32 {
    let lock = ctx.arg(0);
    stats::timed(Program::LockEnd, || kernel_lock::end(&ctx, lock));
    0
}

/// Runs for each task on the host when the agent asks which of them wait; a task iterator.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn waiting(ctx: *const wait::EachTask) -> i32 {
    stats::timed(Program::Waiting, || {
        // SAFETY: the context of this program type.
        unsafe { wait::waiting(ctx) };
    });
    0
}
