//! Locks of the kernel itself: which one a task is about to get, and how long CPUs spin for them.
//!
//! A task that sleeps for such a lock is sampled when it is back, as of any wait (`wait`). A CPU
//! that spins does not switch: how long it does is known at the end only. Both hooks run whenever a
//! lock is not free, also in interrupts and in the scheduler.

use aya_ebpf::{EbpfContext, bindings::task_struct, helpers::bpf_get_current_task_btf};
use everflame_agent_common::{
    event::Kind,
    lock::LockFlags,
    stats::{Counter, Program},
    wait::{Wait, count_down},
};

use crate::{
    lock,
    maps::{SPINS, SUBMITTING, THREADS, config},
    stats,
    task::pid,
};

/// A lock that a CPU spins for. One at a time: of two, an interrupt spins for the second, and the
/// first is forgotten.
#[repr(C)]
pub struct Spin {
    /// 0 if there is none.
    lock: u64,
    begin_ns: u64,
    /// Spinning until the next sample, in nanoseconds; 0 before the first.
    left: u64,
    flags: u32,
    unused: u32,
}

/// Whether the locks of a task are looked at.
#[inline(always)]
fn is_target(task: *const task_struct) -> bool {
    let target = config!(target_pid);
    // SAFETY: a task.
    target == 0 || target == unsafe { pid(task) }
}

/// Notes which lock the current task is about to get.
#[inline(always)]
pub fn begin(ctx: &impl EbpfContext, lock: u64, flags: u32) {
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task_btf() };
    if !is_target(task) {
        return;
    }
    let Some(spin) = SPINS.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's.
    let spin = unsafe { &mut *spin };
    if LockFlags(flags).is_spinning() {
        (spin.lock, spin.flags) = (lock, flags);
        spin.begin_ns = stats::now_ns();
        return;
    }
    // A mutex that did not become free while the task was spinning.
    if spin.lock == lock {
        spun(ctx, Program::LockBegin, spin);
    }
    // SAFETY: a task.
    let Some(thread) = (unsafe { THREADS.get(task) }) else { return };
    // SAFETY: a map value, and the thread's own.
    unsafe {
        (*thread).kernel_lock = lock;
        (*thread).kernel_lock_flags = flags;
    }
}

/// To be called when a CPU switches to another task: one that waits for a mutex stops spinning when
/// its CPU is wanted. How long it has been is not counted, as this is no place to take a sample.
#[inline(always)]
pub fn stop_spinning() {
    if let Some(spin) = SPINS.get_ptr_mut(0) {
        // SAFETY: this CPU's.
        unsafe { (*spin).lock = 0 };
    }
}

/// Notes that the current task has got a lock, or has given up.
#[inline(always)]
pub fn end(ctx: &impl EbpfContext, lock: u64) {
    let Some(spin) = SPINS.get_ptr_mut(0) else { return };
    // SAFETY: as in `begin`.
    let spin = unsafe { &mut *spin };
    let mut may_have_slept = true;
    if spin.lock == lock {
        may_have_slept = LockFlags(spin.flags).may_sleep();
        spun(ctx, Program::LockEnd, spin);
    }
    if !may_have_slept {
        return;
    }
    // SAFETY: helpers; the current task is alive.
    let Some(thread) = (unsafe { THREADS.get(bpf_get_current_task_btf()) }) else { return };
    // SAFETY: a map value, and the thread's own.
    let thread = unsafe { &mut *thread };
    if thread.kernel_lock == lock {
        thread.kernel_lock = 0;
    }
}

/// Ends a stretch of spinning, and samples it if it is its turn.
#[inline(always)]
fn spun(ctx: &impl EbpfContext, program: Program, spin: &mut Spin) {
    let kernel_lock = spin.lock;
    spin.lock = 0;
    let end_ns = stats::now_ns();
    let period = config!(wait_period_ns);
    if spin.left == 0 {
        spin.left = stats::random_below(period);
    }
    let length_ns = end_ns.saturating_sub(spin.begin_ns);
    let weight = count_down(&mut spin.left, length_ns, period, stats::scrambled(end_ns));
    let Some(weight) = weight else { return };
    // It may be the ring buffer's own lock, which this CPU has just got.
    if SUBMITTING.get(0).is_some_and(|submitting| *submitting != 0) {
        return stats::count(program, Counter::NoScratch);
    }
    let wait = Wait {
        start_ns: spin.begin_ns,
        end_ns,
        state: 0,
        flags: 0,
        syscall: -1,
        arguments: [0; 2],
        sp: 0,
        fp: 0,
        kernel_lock,
        kernel_lock_flags: spin.flags,
    };
    lock::sample(program, Some(ctx), Kind::Spinning, weight, wait.to_detail());
}
