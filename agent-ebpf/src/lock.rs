//! `lock`: who releases the locks that other threads wait for.
//!
//! What is a lock, and what a release is to blame for, is in `everflame_agent_common::lock`. A
//! thread that goes to sleep in a futex call is counted at its lock; whoever wakes it by a futex
//! call has released that. Whether it is a lock at all, or a condition or a queue, the agent
//! tells by the functions on the stacks. Of the kernel's own locks, which `kernel_lock` finds,
//! whoever wakes a waiter has released it.

use aya_ebpf::{EbpfContext, bindings::task_struct, helpers::bpf_get_current_task_btf};
use everflame_agent_common::{
    event::{DETAIL_WORDS, Kind},
    lock::{Lock, LockKey, Release, blame, is_of_kernel},
    stats::{Counter, Program},
    wait::{Thread, Weight, is_sampled},
};

use crate::{
    maps::{LOCK_RULES, LOCK_SAMPLING, LOCK_SCRATCH, LOCK_WALK, LOCKS, config},
    registers,
    sample::{Memory, sample_current_task},
    stats::{self, add_shared as add},
};

/// Numbers of system calls.
mod syscall {
    #[cfg(bpf_target_arch = "x86_64")]
    pub const FUTEX: i64 = 202;
    #[cfg(bpf_target_arch = "aarch64")]
    pub const FUTEX: i64 = 98;
    pub const FUTEX_WAKE: i64 = 454;
    pub const FUTEX_WAIT: i64 = 455;
    pub const FUTEX_REQUEUE: i64 = 456;
}

/// What the kernel looks at of an address: on aarch64 programs may write into the highest byte.
const USER_ADDRESS: u64 = u64::MAX >> if cfg!(bpf_target_arch = "aarch64") { 8 } else { 1 };

/// Operations of `futex` that wait, as bits: WAIT, LOCK_PI, WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2
/// of include/uapi/linux/futex.h.
const WAITS: u64 = 1 << 0 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 13;

/// Those that wake: WAKE, REQUEUE, CMP_REQUEUE, WAKE_OP, UNLOCK_PI, WAKE_BITSET, CMP_REQUEUE_PI.
const WAKES: u64 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 10 | 1 << 12;

/// The bit of an operation of `futex`, without its flags.
#[inline(always)]
fn operation(argument: u64) -> u64 {
    1 << (argument & 63)
}

/// The futex that a task is about to sleep on; 0 if it is not.
///
/// # Safety
/// `task` comes from the kernel, which knows it for a task.
#[inline(always)]
pub unsafe fn futex_of(task: *mut task_struct) -> u64 {
    // SAFETY: a task.
    let (number, [address, second]) = unsafe { registers::system_call(registers::saved_by(task)) };
    let waits = number == syscall::FUTEX && operation(second) & WAITS != 0;
    if waits || number == syscall::FUTEX_WAIT { address & USER_ADDRESS } else { 0 }
}

/// Counts a thread that goes to sleep at its lock.
#[inline(always)]
pub fn came(key: LockKey, now_ns: u64) {
    let Some(lock) = LOCKS.get_ptr_mut(&key) else {
        let left = stats::random_below(config!(wait_period_ns));
        let lock = Lock { waiters: 1, released_ns: now_ns, late_ns: 0, left };
        if LOCKS.insert(&key, &lock, 0).is_err() {
            stats::count(Program::SwitchOut, Counter::Untracked);
        }
        return;
    };
    // SAFETY: a map value of integers. Other CPUs change it, too: what a lost update costs is a
    // charge that is wrong by the time between two events on two CPUs.
    unsafe {
        if (*lock).waiters == 0 {
            (*lock).released_ns = now_ns;
            (*lock).late_ns = 0;
        } else {
            add(&raw mut (*lock).late_ns, now_ns.saturating_sub((*lock).released_ns));
        }
        add(&raw mut (*lock).waiters, 1);
    }
}

/// Takes a thread away from its lock whose wake-up was not seen: it came when the thread had
/// decided to sleep but had not been noted yet.
///
/// # Safety
/// `thread` is a map value.
#[inline(always)]
pub unsafe fn gone(thread: &Thread, pid: u32) {
    let key = LockKey::new(thread.lock, pid);
    let Some(lock) = LOCKS.get_ptr_mut(&key) else { return };
    // SAFETY: a map value.
    unsafe { leave(&mut *lock, thread) };
}

/// Takes a thread away from its lock without a release: nobody else waits less for that.
///
/// # Safety
/// `lock` is a map value.
#[inline(always)]
unsafe fn leave(lock: &mut Lock, thread: &Thread) {
    // SAFETY: as in `came`.
    unsafe {
        if lock.waiters != 0 {
            add(&raw mut lock.waiters, u64::MAX);
        }
        if thread.out_ns > lock.released_ns {
            let late_ns = thread.out_ns - lock.released_ns;
            add(&raw mut lock.late_ns, late_ns.wrapping_neg());
        }
    }
}

/// Takes a thread that is woken away from its lock. If the current task has released that, it is
/// charged for all that have waited since the last release.
///
/// # Safety
/// `thread` is a map value.
#[inline(always)]
pub unsafe fn left(ctx: &impl EbpfContext, thread: &Thread, pid: u32, tid: u32, now_ns: u64) {
    const PROGRAM: Program = Program::Waking;
    let address = thread.lock;
    let key = LockKey::new(address, pid);
    let Some(lock) = LOCKS.get_ptr_mut(&key) else {
        return stats::count(PROGRAM, Counter::Untracked);
    };
    // SAFETY: as in `came`.
    let lock = unsafe { &mut *lock };
    // As it was when this thread still waited, too.
    let mut before = *lock;
    // SAFETY: a map value.
    unsafe { leave(lock, thread) };
    let is_of_kernel = is_of_kernel(address);
    if !is_of_kernel {
        // SAFETY: helpers; the current task is alive.
        let saved = unsafe { registers::saved_by(bpf_get_current_task_btf()) };
        // SAFETY: a task's registers.
        let (number, [word, second]) = unsafe { registers::system_call(saved) };
        // Not by a signal, nor because its time is up.
        let wakes = number == syscall::FUTEX && operation(second) & WAKES != 0
            || number == syscall::FUTEX_WAKE
            || number == syscall::FUTEX_REQUEUE;
        if !wakes || word & USER_ADDRESS != address {
            return;
        }
    }
    let period = config!(wait_period_ns);
    let weight = blame(&mut before, now_ns, period, stats::scrambled(now_ns));
    (lock.released_ns, lock.late_ns, lock.left) = (now_ns, 0, before.left);
    // Without a weight of its own, to say who ended a wait that will be a sample, unless the CPU
    // that the thread is going to run on has too many.
    let waited_ns = now_ns.saturating_sub(thread.out_ns);
    let is_asked_for =
        thread.reported_ns > thread.out_ns || is_sampled(thread.wait_left, waited_ns, period);
    if weight.is_none() && !is_asked_for {
        return;
    }
    let weight = weight.unwrap_or(Weight { value: 0, count: 0 });
    let kernel_lock_flags = thread.kernel_lock_flags;
    let release = Release { address, pid: key.pid, tid, time_ns: now_ns, kernel_lock_flags };
    // Of a futex, what the kernel does is the same for all.
    let kernel = if is_of_kernel { Some(ctx) } else { None };
    sample(PROGRAM, kernel, Kind::Release, weight, release.to_detail());
}

/// Samples the current task in what it does with a lock; its stack in the kernel only by `kernel`.
#[inline(always)]
pub fn sample<C: EbpfContext>(
    program: Program,
    kernel: Option<&C>,
    kind: Kind,
    weight: Weight,
    detail: [u64; DETAIL_WORDS],
) {
    let (Some(is_sampling), Some(scratch), Some(walk), Some(rules)) = (
        LOCK_SAMPLING.get_ptr_mut(0),
        LOCK_SCRATCH.get_ptr_mut(0),
        LOCK_WALK.get_ptr_mut(0),
        LOCK_RULES.get_ptr_mut(0),
    ) else {
        return stats::count(program, Counter::NoScratch);
    };
    // SAFETY: this CPU's maps, which nothing else uses.
    let memory = unsafe { Memory::new(is_sampling, scratch, walk, rules) };
    sample_current_task(program, memory, kernel, kind, weight, detail);
}
