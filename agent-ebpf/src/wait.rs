//! `offcpu`: how long threads are off their CPUs, and the stacks of a share of their waits.
//!
//! Which waits become samples is in `everflame_agent_common::wait`. The stack is taken when
//! the thread is back on a CPU, in its own context: only then is the length of the wait known,
//! and its memory is at hand.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, bindings::task_struct, helpers::bpf_get_current_task_btf};
use everflame_agent_common::{
    event::Kind,
    lock::{LockKey, is_of_kernel},
    stats::{Counter, Program},
    unwind::Stop,
    wait::{FLAG_RUN_QUEUE, PREEMPTED, Thinning, Thread, Wait, Weight, count_down},
};

use crate::{
    kernel_lock, lock,
    maps::{
        ENDED, SWITCH_CLOCK, THREADS, WAIT_RULES, WAIT_SCRATCH, WAIT_WALK, WAITING_SCRATCH,
        WAITING_WALK, config,
    },
    registers::{self, Found},
    stats,
    task::{field, is_queued, pid, run_delay_ns, tid},
};

/// `TASK_DEAD` of include/linux/sched.h: a task that leaves its CPU in this state is not
/// coming back.
const TASK_DEAD: u32 = 0x80;

/// When a CPU switches from one task to another. One moment for both, as in the kernel's own
/// accounts: what the switch itself takes is not lost between them, nor counted as waiting of both.
///
/// The scheduler has just read a clock for itself; to read another takes a fifth of all that
/// is done in a switch. So that clock is put right once a second only.
#[repr(C)]
pub struct SwitchClock {
    /// The last switch, on CLOCK_MONOTONIC.
    switched_ns: u64,
    /// The scheduler's clock is that much behind CLOCK_MONOTONIC.
    behind_ns: u64,
    /// When that was found, on the scheduler's clock.
    compared_ns: u64,
    /// Of the waits that end here.
    thinning: Thinning,
}

impl SwitchClock {
    /// The clocks drift by much less than a thousandth.
    const COMPARE_EVERY_NS: u64 = 1_000_000_000;

    /// More than that in between is not drift but time that a hypervisor has taken between the two
    /// readings: it is believed only bit by bit, if it is seen in one switch after the other.
    const MAX_STEP_NS: i64 = 100_000;

    /// Goes to a switch of which `task` is a part, and says when that is.
    ///
    /// # Safety
    /// `task` comes from the kernel, which knows it for a task.
    #[inline(always)]
    unsafe fn advance(&mut self, task: *const task_struct) -> u64 {
        if config!(task_cfs_rq_offset) == 0 {
            self.switched_ns = stats::now_ns();
            return self.switched_ns;
        }
        // SAFETY: a task, the part of its CPU's run queue that it belongs to, and that queue.
        let scheduler_ns: u64 = unsafe {
            let cfs_rq: *const c_void = field(task, config!(task_cfs_rq_offset));
            let rq: *const c_void = field(cfs_rq, config!(cfs_rq_rq_offset));
            field(rq, config!(rq_clock_offset))
        };
        if scheduler_ns.wrapping_sub(self.compared_ns) > Self::COMPARE_EVERY_NS {
            self.compare(scheduler_ns);
        }
        self.switched_ns = scheduler_ns.wrapping_add(self.behind_ns);
        self.switched_ns
    }

    /// Puts the clock right.
    #[inline(always)]
    fn compare(&mut self, scheduler_ns: u64) {
        let found_ns = stats::now_ns().wrapping_sub(scheduler_ns);
        let step_ns = found_ns.wrapping_sub(self.behind_ns) as i64;
        if step_ns > Self::MAX_STEP_NS && self.compared_ns != 0 {
            self.behind_ns = self.behind_ns.wrapping_add(Self::MAX_STEP_NS as u64);
            return;
        }
        self.behind_ns = found_ns;
        self.compared_ns = scheduler_ns;
    }
}

/// Begins to follow a thread, if its process is one that is looked at. Not done in the switch in
/// which it would first be needed: to allocate memory may wake a thread, and there this CPU's
/// run queue is locked.
///
/// # Safety
/// As of [`tid`].
#[inline(always)]
pub unsafe fn follow(program: Program, task: *mut task_struct) -> Option<*mut Thread> {
    // SAFETY: as the caller says.
    if config!(target_pid) != 0 && config!(target_pid) != unsafe { pid(task) } {
        return None;
    }
    // SAFETY: as the caller says.
    let Some(thread) = (unsafe { THREADS.get_or_create(task) }) else {
        stats::count(program, Counter::Untracked);
        return None;
    };
    // SAFETY: a map value. That two do this at once does no harm.
    unsafe {
        if (*thread).wait_left == 0 {
            // Countdowns begin anywhere.
            (*thread).queue_left = stats::random_below(config!(wait_period_ns));
            (*thread).wait_left = stats::random_below(config!(wait_period_ns));
        }
    }
    Some(thread)
}

/// Notes that a task leaves its CPU.
///
/// # Safety
/// `task` comes from the kernel, which knows it for a task.
#[inline(always)]
pub unsafe fn switch_out(task: *mut task_struct, preempted: bool, state: u32) {
    let Some(clock) = SWITCH_CLOCK.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's, which switches once at a time; and a task.
    let out_ns = unsafe { (*clock).advance(task) };
    // SAFETY: a task.
    if unsafe { tid(task) } == 0 || state & TASK_DEAD != 0 {
        return;
    }
    // SAFETY: a task.
    let Some(thread) = (unsafe { THREADS.get(task) }) else { return };
    // SAFETY: a map value, and the thread's own but for `woken_ns`, which is set when it waits.
    let thread = unsafe { &mut *thread };
    // Ready to run, though it meant to wait: somebody was quicker.
    let state = if preempted || state == 0 { PREEMPTED } else { state };
    if config!(locks) != 0 {
        kernel_lock::stop_spinning();
    }
    let mut lock = 0;
    if config!(locks) != 0 && state != PREEMPTED {
        lock = thread.kernel_lock;
        if lock == 0 {
            // SAFETY: a task.
            lock = unsafe { lock::futex_of(task) };
        }
        if lock != 0 {
            // Before anybody can see that it sleeps, and take it away again.
            // SAFETY: a task.
            lock::came(LockKey::new(lock, unsafe { pid(task) }), out_ns);
        }
    }
    // SAFETY: a task.
    thread.run_delay_ns = unsafe { run_delay_ns(task) };
    thread.woken_ns = 0;
    thread.state = state;
    thread.lock = lock;
    thread.out_ns = out_ns;
}

/// Ends the wait of the current task, and samples it if it is its turn.
#[inline(always)]
pub fn switch_in(ctx: &impl EbpfContext) {
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: a task.
    if unsafe { tid(task) } == 0 {
        // A CPU that goes idle does so every other switch, and there is nothing to look up.
        return;
    }
    // SAFETY: a task.
    let Some(thread) = (unsafe { THREADS.get(task) }) else { return };
    // SAFETY: a map value, and the current thread's own.
    let thread = unsafe { &mut *thread };
    let out_ns = thread.out_ns;
    if out_ns == 0 {
        return;
    }
    let Some(clock) = SWITCH_CLOCK.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's, written when the task before left it.
    let clock = unsafe { &mut *clock };
    let in_ns = clock.switched_ns;
    let reported_ns = thread.reported_ns;
    let start_ns = if reported_ns > out_ns { reported_ns } else { out_ns };
    let woken_ns = if thread.state == PREEMPTED {
        start_ns
    } else if thread.lock != 0 && thread.woken_ns != 0 {
        // By the same clock as the release that it belongs to.
        if thread.woken_ns < in_ns { thread.woken_ns } else { in_ns }
    } else {
        // SAFETY: a task.
        let delay_ns = unsafe { run_delay_ns(task) }.saturating_sub(thread.run_delay_ns);
        in_ns.saturating_sub(delay_ns)
    };
    let woken_ns = if woken_ns > start_ns { woken_ns } else { start_ns };
    if thread.lock != 0 && thread.woken_ns == 0 {
        // SAFETY: a map value, and a task.
        unsafe { lock::gone(thread, pid(task)) };
    }
    thread.out_ns = 0;
    thread.reported_ns = 0;
    let period = config!(wait_period_ns);
    let random = stats::scrambled(in_ns);
    let rest_ns = woken_ns - start_ns;
    let is_rest = reported_ns > out_ns;
    let waited = if is_rest {
        // Of a wait that has been counted.
        Some(Weight { value: rest_ns, count: 0 })
    } else {
        count_down(&mut thread.wait_left, rest_ns, period, random)
    };
    let queued = count_down(&mut thread.queue_left, in_ns.saturating_sub(woken_ns), period, random);
    // Nearly always: all that is left to do is for samples.
    if waited.is_none() && queued.is_none() {
        return;
    }
    let most = config!(wait_samples);
    let thinning = &mut clock.thinning;
    thinning.advance(in_ns, Thinning::INTERVAL_NS, most);
    let Some(ended) = ENDED.get_ptr_mut(0) else { return };
    // SAFETY: as the clock.
    let ended = unsafe { &mut *ended };
    let mut keep = |weight| thinning.keep(weight, period, most, random);
    ended.waited = if is_rest { waited } else { waited.and_then(&mut keep) }.unwrap_or(NOTHING);
    ended.queued = queued.and_then(&mut keep).unwrap_or(NOTHING);
    if ended.waited.value | ended.queued.value == 0 {
        return;
    }
    if thinning.is_thinning() {
        stats::count(Program::SwitchIn, Counter::Thinned);
    }
    (ended.kernel_lock, ended.kernel_lock_flags) = lock_of_kernel(thread);
    (ended.out_ns, ended.woken_ns, ended.state) = (out_ns, woken_ns, thread.state);
    sample(ctx, ended);
}

/// The kernel's lock that a thread waits for, and what the kernel says of it.
#[inline(always)]
fn lock_of_kernel(thread: &Thread) -> (u64, u32) {
    if is_of_kernel(thread.lock) { (thread.lock, thread.kernel_lock_flags) } else { (0, 0) }
}

/// A wait that becomes a sample, or two; in a map, where the verifier forgets by which of many ways
/// the numbers were found, and so looks at what follows only once.
#[repr(C)]
pub struct Ended {
    /// Waiting to be woken; nothing if its value is 0.
    waited: Weight,
    /// Waiting for a CPU; likewise.
    queued: Weight,
    out_ns: u64,
    woken_ns: u64,
    kernel_lock: u64,
    kernel_lock_flags: u32,
    state: u32,
}

const NOTHING: Weight = Weight { value: 0, count: 0 };

#[inline(always)]
fn sample(ctx: &impl EbpfContext, ended: &Ended) {
    const PROGRAM: Program = Program::SwitchIn;
    let (Some(scratch), Some(walk), Some(rules)) =
        (WAIT_SCRATCH.get_ptr_mut(0), WAIT_WALK.get_ptr_mut(0), WAIT_RULES.get_ptr_mut(0))
    else {
        return stats::count(PROGRAM, Counter::NoScratch);
    };
    // SAFETY: this CPU's memory, three maps; the scheduler does not interrupt itself.
    let (scratch, walk, rules) = unsafe { (&mut *scratch, &mut *walk, &mut *rules) };

    scratch.begin(Kind::OffCpu, Weight { value: 0, count: 0 });
    scratch.take_kernel_stack(ctx);
    let mut wait = Wait {
        start_ns: ended.out_ns,
        end_ns: ended.woken_ns,
        state: ended.state,
        flags: 0,
        syscall: -1,
        arguments: [0; 2],
        sp: 0,
        fp: 0,
        kernel_lock: ended.kernel_lock,
        kernel_lock_flags: ended.kernel_lock_flags,
    };
    // SAFETY: helpers; the current task is alive.
    let saved = unsafe { registers::saved_by(bpf_get_current_task_btf()) };
    let found = registers::copy(saved as u64, &mut walk.registers);
    if found != Found::Kernel {
        // SAFETY: a task's registers.
        (wait.syscall, wait.arguments) = unsafe { registers::system_call(saved) };
    }
    match found {
        Found::User => scratch.take_user_stack(PROGRAM, walk, rules),
        Found::Compat => scratch.take_leaf(walk.registers.ip, Stop::Compat),
        Found::Kernel => {}
    }
    if ended.waited.value != 0 {
        scratch.set_wait(ended.waited, wait);
        scratch.submit(PROGRAM);
    }
    if ended.queued.value != 0 {
        wait.flags = FLAG_RUN_QUEUE;
        scratch.set_wait(ended.queued, wait);
        scratch.submit(PROGRAM);
    }
}

/// Notes that a task is woken that waits for a lock.
///
/// # Safety
/// `task` comes from the kernel, which knows it for a task.
#[inline(always)]
pub unsafe fn waking(ctx: &impl EbpfContext, task: *mut task_struct) {
    // SAFETY: a task.
    let Some(thread) = (unsafe { THREADS.get(task) }) else { return };
    // SAFETY: a map value; a task's wakers wait for each other.
    let thread = unsafe { &mut *thread };
    if thread.lock == 0 || thread.out_ns == 0 || thread.woken_ns != 0 {
        return;
    }
    let now_ns = stats::now_ns();
    thread.woken_ns = now_ns;
    // SAFETY: a map value, and a task.
    unsafe { lock::left(ctx, thread, pid(task), tid(task), now_ns) };
}

/// `struct bpf_iter__task` of the kernel.
#[repr(C)]
pub struct EachTask {
    meta: *const c_void,
    task: *mut task_struct,
}

/// Reports the wait of one task if it goes on, up to now. Begins to follow one that was there before.
///
/// # Safety
/// `ctx` is what the kernel gives to a task iterator.
#[inline(always)]
pub unsafe fn waiting(ctx: *const EachTask) {
    const PROGRAM: Program = Program::Waiting;
    // SAFETY: the context has this shape.
    let task = unsafe { (*ctx).task };
    if task.is_null() {
        return;
    }
    // SAFETY: a task.
    let Some(thread) = (unsafe { follow(PROGRAM, task) }) else { return };
    // SAFETY: a map value. That the thread runs meanwhile does no harm: what was reported is
    // older than its next wait.
    let thread = unsafe { &mut *thread };
    let (out_ns, reported_ns) = (thread.out_ns, thread.reported_ns);
    // SAFETY: a task.
    if out_ns == 0 || thread.state == PREEMPTED || unsafe { is_queued(task) } {
        return;
    }
    let now_ns = stats::now_ns();
    let start_ns = if reported_ns > out_ns { reported_ns } else { out_ns };
    let value = now_ns.saturating_sub(start_ns);
    if value < config!(wait_period_ns) {
        return;
    }
    let (Some(scratch), Some(walk)) = (WAITING_SCRATCH.get_ptr_mut(0), WAITING_WALK.get_ptr_mut(0))
    else {
        return stats::count(PROGRAM, Counter::NoScratch);
    };
    // SAFETY: two maps; the agent runs one iterator at a time.
    let (scratch, walk) = unsafe { (&mut *scratch, &mut *walk) };
    let state = thread.state;
    let (kernel_lock, kernel_lock_flags) = lock_of_kernel(thread);
    thread.reported_ns = now_ns;

    let weight = Weight { value, count: u64::from(reported_ns <= out_ns) };
    scratch.begin(Kind::Waiting, weight);
    // SAFETY: a task.
    unsafe {
        scratch.set_task(pid(task), tid(task));
        scratch.take_kernel_stack_of(task);
    }
    let mut wait = Wait {
        start_ns: out_ns,
        end_ns: now_ns,
        state,
        flags: 0,
        syscall: -1,
        arguments: [0; 2],
        sp: 0,
        fp: 0,
        kernel_lock,
        kernel_lock_flags,
    };
    // SAFETY: a task.
    let saved = unsafe { registers::saved_by(task) };
    let found = registers::copy(saved as u64, &mut walk.registers);
    if found != Found::Kernel {
        // SAFETY: a task's registers.
        (wait.syscall, wait.arguments) = unsafe { registers::system_call(saved) };
        wait.sp = walk.registers.sp;
        wait.fp = walk.registers.fp;
        let stop = if found == Found::User { Stop::NoTable } else { Stop::Compat };
        scratch.take_leaf(walk.registers.ip, stop);
    }
    scratch.set_wait(weight, wait);
    scratch.submit(PROGRAM);
}
