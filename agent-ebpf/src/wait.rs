//! `offcpu`: how long threads are off their CPUs, and the stacks of a share of their waits.
//!
//! Which waits become samples is in `everflame_agent_common::wait`. The stack is taken when
//! the thread is back on a CPU, in its own context: only then is the length of the wait known,
//! and its memory is at hand.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::task_struct,
    helpers::{bpf_get_current_pid_tgid, bpf_task_pt_regs},
};
use everflame_agent_common::{
    event::Kind,
    stats::{Counter, Program},
    unwind::Stop,
    wait::{FLAG_RUN_QUEUE, PREEMPTED, Thread, Wait, Weight, count_down},
};

use crate::{
    kernel::Kernel,
    lock,
    maps::{
        CONFIG, SWITCHED_NS, THREADS, WAIT_RULES, WAIT_SCRATCH, WAIT_WALK, WAITING_SCRATCH,
        WAITING_WALK,
    },
    registers::{self, Found},
    stats,
};

/// `TASK_DEAD` of include/linux/sched.h: a task that leaves its CPU in this state is not
/// coming back.
const TASK_DEAD: u32 = 0x80;

/// Notes that the current task leaves its CPU.
#[inline(always)]
pub fn switch_out<K: Kernel>(preempted: bool, state: u32) {
    let out_ns = stats::now_ns();
    let Some(switched_ns) = SWITCHED_NS.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's, which switches once at a time.
    unsafe { *switched_ns = out_ns };
    let id = bpf_get_current_pid_tgid();
    let (pid, tid) = ((id >> 32) as u32, id as u32);
    if tid == 0 {
        return;
    }
    let config = CONFIG.load();
    if config.target_pid != 0 && config.target_pid != pid {
        return;
    }
    if state & TASK_DEAD != 0 {
        // Absent if all of its life was within one stretch on a CPU.
        let _ = THREADS.remove(tid);
        return;
    }
    // Ready to run, though it meant to wait: somebody was quicker.
    let state = if preempted || state == 0 { PREEMPTED } else { state };
    let futex = if config.locks != 0 && state != PREEMPTED {
        lock::futex_of_current_task::<K>()
    } else {
        0
    };
    let Some(thread) = THREADS.get_ptr_mut(tid) else {
        // The first time; countdowns begin anywhere.
        let period = config.wait_period_ns;
        let thread = Thread {
            out_ns,
            woken_ns: 0,
            reported_ns: 0,
            wait_left: stats::random_below(period),
            queue_left: stats::random_below(period),
            futex,
            state,
            pid,
        };
        if futex != 0 {
            lock::came(futex, pid, out_ns);
        }
        if THREADS.insert(tid, thread, 0).is_err() {
            stats::count(Program::SwitchOut, Counter::Untracked);
            if futex != 0 {
                // SAFETY: nobody else has it.
                unsafe { lock::gone(&thread) };
            }
        }
        return;
    };
    // Before anybody can see that it sleeps, and take it away again.
    if futex != 0 {
        lock::came(futex, pid, out_ns);
    }
    // SAFETY: a map value, and the thread's own but for `woken_ns`, which is set when it waits.
    unsafe {
        (*thread).woken_ns = 0;
        (*thread).state = state;
        (*thread).futex = futex;
        (*thread).out_ns = out_ns;
    }
}

/// Ends the wait of the current task, and samples it if it is its turn.
#[inline(always)]
pub fn switch_in<K: Kernel>(ctx: &impl EbpfContext) {
    let tid = bpf_get_current_pid_tgid() as u32;
    if tid == 0 {
        return;
    }
    let Some(thread) = THREADS.get_ptr_mut(tid) else { return };
    // SAFETY: a map value, and the current thread's own.
    let thread = unsafe { &mut *thread };
    let out_ns = thread.out_ns;
    if out_ns == 0 {
        return;
    }
    let Some(switched_ns) = SWITCHED_NS.get_ptr(0) else { return };
    // SAFETY: this CPU's, written when the task before left it.
    let in_ns = unsafe { *switched_ns };
    let reported_ns = thread.reported_ns;
    let start_ns = if reported_ns > out_ns { reported_ns } else { out_ns };
    let woken_ns = if thread.state == PREEMPTED {
        start_ns
    } else if thread.woken_ns < out_ns {
        in_ns
    } else if thread.woken_ns < start_ns {
        start_ns
    } else {
        thread.woken_ns
    };
    if thread.futex != 0 && thread.woken_ns == 0 {
        // SAFETY: a map value.
        unsafe { lock::gone(thread) };
    }
    thread.out_ns = 0;
    thread.reported_ns = 0;
    let period = CONFIG.load().wait_period_ns;
    let random = stats::scrambled(in_ns);
    let waited = if reported_ns > out_ns {
        // The rest of a wait that has been counted.
        let value = woken_ns.saturating_sub(start_ns);
        if value == 0 { None } else { Some(Weight { value, count: 0 }) }
    } else {
        count_down(&mut thread.wait_left, woken_ns.saturating_sub(start_ns), period, random)
    };
    let queued = count_down(&mut thread.queue_left, in_ns.saturating_sub(woken_ns), period, random);
    if waited.is_none() && queued.is_none() {
        return;
    }
    sample::<K>(ctx, Ended { waited, queued, state: thread.state, out_ns, woken_ns });
}

/// A wait that becomes a sample, or two.
struct Ended {
    /// Waiting to be woken.
    waited: Option<Weight>,
    /// Waiting for a CPU.
    queued: Option<Weight>,
    state: u32,
    out_ns: u64,
    woken_ns: u64,
}

#[inline(always)]
fn sample<K: Kernel>(ctx: &impl EbpfContext, ended: Ended) {
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
    };
    if let Some(saved) = registers::saved_by_current_task::<K>() {
        let found = registers::copy(saved, &mut walk.registers);
        if found != Found::Kernel {
            (wait.syscall, wait.arguments) = registers::system_call(saved, &walk.registers);
        }
        match found {
            Found::User => scratch.take_user_stack::<K>(PROGRAM, walk, rules),
            Found::Compat => scratch.take_leaf(walk.registers.ip, Stop::Compat),
            Found::Kernel => {}
        }
    }
    if let Some(weight) = ended.waited {
        scratch.set_wait(weight, wait);
        scratch.submit(PROGRAM);
    }
    if let Some(weight) = ended.queued {
        wait.flags = FLAG_RUN_QUEUE;
        scratch.set_wait(weight, wait);
        scratch.submit(PROGRAM);
    }
}

/// Notes that a task is woken.
///
/// # Safety
/// `task` comes from the kernel, which knows it for a task.
#[inline(always)]
pub unsafe fn waking<K: Kernel>(task: *const u8) {
    // SAFETY: the verifier checks the offset against the kernel's types.
    let tid = unsafe { *task.add(CONFIG.load().task_pid_offset as usize).cast::<u32>() };
    let Some(thread) = THREADS.get_ptr_mut(tid) else { return };
    // SAFETY: a map value; a task's wakers wait for each other.
    let thread = unsafe { &mut *thread };
    if thread.out_ns == 0 || thread.woken_ns != 0 {
        return;
    }
    let now_ns = stats::now_ns();
    thread.woken_ns = now_ns;
    if thread.futex != 0 {
        // SAFETY: a map value.
        unsafe { lock::left::<K>(thread, tid, now_ns) };
    }
}

/// `struct bpf_iter__task` of the kernel.
#[repr(C)]
pub struct EachTask {
    meta: *const c_void,
    task: *mut task_struct,
}

/// Reports the wait of one task if it goes on, up to now.
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
    let config = CONFIG.load();
    // SAFETY: the verifier checks the offsets against the kernel's types.
    let (tid, pid) = unsafe {
        let task: *const u8 = task.cast();
        (
            *task.add(config.task_pid_offset as usize).cast::<u32>(),
            *task.add(config.task_tgid_offset as usize).cast::<u32>(),
        )
    };
    let Some(thread) = THREADS.get_ptr_mut(tid) else { return };
    // SAFETY: a map value. That the thread runs meanwhile does no harm: what was reported is
    // older than its next wait.
    let thread = unsafe { &mut *thread };
    let (out_ns, reported_ns) = (thread.out_ns, thread.reported_ns);
    if out_ns == 0 || thread.woken_ns != 0 || thread.state == PREEMPTED {
        return;
    }
    let now_ns = stats::now_ns();
    let start_ns = if reported_ns > out_ns { reported_ns } else { out_ns };
    let value = now_ns.saturating_sub(start_ns);
    if value < config.wait_period_ns {
        return;
    }
    let (Some(scratch), Some(walk)) = (WAITING_SCRATCH.get_ptr_mut(0), WAITING_WALK.get_ptr_mut(0))
    else {
        return stats::count(PROGRAM, Counter::NoScratch);
    };
    // SAFETY: two maps; the agent runs one iterator at a time.
    let (scratch, walk) = unsafe { (&mut *scratch, &mut *walk) };
    let state = thread.state;
    thread.reported_ns = now_ns;

    let weight = Weight { value, count: u64::from(reported_ns <= out_ns) };
    scratch.begin(Kind::Waiting, weight);
    scratch.set_task(pid, tid);
    // SAFETY: a task.
    unsafe { scratch.take_kernel_stack_of(task) };
    let mut wait = Wait {
        start_ns: out_ns,
        end_ns: now_ns,
        state,
        flags: 0,
        syscall: -1,
        arguments: [0; 2],
        sp: 0,
        fp: 0,
    };
    // SAFETY: a task.
    let saved = (unsafe { bpf_task_pt_regs(task) }) as u64;
    let found = registers::copy(saved, &mut walk.registers);
    if found != Found::Kernel {
        (wait.syscall, wait.arguments) = registers::system_call(saved, &walk.registers);
        wait.sp = walk.registers.sp;
        wait.fp = walk.registers.fp;
        let stop = if found == Found::User { Stop::NoTable } else { Stop::Compat };
        scratch.take_leaf(walk.registers.ip, stop);
    }
    scratch.set_wait(weight, wait);
    scratch.submit(PROGRAM);
}
