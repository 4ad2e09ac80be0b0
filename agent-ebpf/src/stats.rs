//! Counting, and timing of a random share of all runs.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use everflame_agent_common::{
    limits::TIMED_RUN_INTERVAL,
    stats::{Counter, Program, run_time_slot, slot},
};

use crate::maps::{RUN_TIMES, STATS};

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(program: Program, counter: Counter) {
    add(program, counter, 1);
}

/// Runs a program's body. One in 64 runs is timed, by a number that follows from how many there
/// were: an unbiased estimate of what the program costs, for a clock read in each of those
/// instead of two in all, and without asking for a random number in each.
#[inline(always)]
pub fn timed(program: Program, body: impl FnOnce()) {
    let number = match STATS.get_ptr_mut(slot(program, Counter::Runs)) {
        // SAFETY: a map value.
        Some(runs) => unsafe {
            increase(program, runs, 1);
            *runs
        },
        None => 0,
    };
    let start_ns = start_ns(number);
    body();
    took(program, start_ns);
}

/// When a run began, if it is one of those that are timed; 0 if not. `number` is its own.
#[inline(always)]
pub fn start_ns(number: u64) -> u64 {
    let is_timed = scrambled(number) < u32::MAX / TIMED_RUN_INTERVAL;
    if is_timed { now_ns() } else { 0 }
}

/// Notes how long a run took that began then, if it is one of those.
#[inline(always)]
pub fn took(program: Program, start_ns: u64) {
    if start_ns == 0 {
        return;
    }
    let run_ns = now_ns().wrapping_sub(start_ns);
    add(program, Counter::TimedNs, run_ns);
    count(program, Counter::TimedRuns);
    if let Some(runs) = RUN_TIMES.get_ptr_mut(run_time_slot(program, run_ns)) {
        // SAFETY: a map value.
        unsafe { increase(program, runs, 1) };
    }
}

/// Says how many runs there were, of a program that counts them itself, on this CPU.
#[inline(always)]
pub fn set_runs(program: Program, runs: u64) {
    if let Some(counted) = STATS.get_ptr_mut(slot(program, Counter::Runs)) {
        // SAFETY: a map value that nothing else counts in.
        unsafe { *counted = runs };
    }
}

/// A number that follows from `seed` and has no rhythm in common with it: where that is enough,
/// as it costs a tenth of a [`random`] one.
#[inline(always)]
pub fn scrambled(seed: u64) -> u32 {
    // 2^64 / the golden ratio.
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// Any number. Takes some 30 ns.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// From 1 to `bound`, which is less than 2^32.
#[inline(always)]
pub fn random_below(bound: u64) -> u64 {
    1 + (u64::from(random()) * bound >> 32)
}

/// Now, on CLOCK_MONOTONIC.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds to a word that others add to, on this CPU or another.
///
/// # Safety
/// `word` is in a map value.
#[inline(always)]
pub unsafe fn add_shared(word: *mut u64, amount: u64) {
    // Written down, as the standard library has atomics only where they can also be compared.
    // SAFETY: an aligned word that lives as long as the program.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) amount);
    }
}

#[inline(always)]
fn add(program: Program, counter: Counter, amount: u64) {
    if let Some(value) = STATS.get_ptr_mut(slot(program, counter)) {
        // SAFETY: a map value.
        unsafe { increase(program, value, amount) };
    }
}

/// Adds to what this CPU counts of a program. What interrupts it counts elsewhere; only another run of the
/// same program could lose an increment, where there may be one in between.
///
/// # Safety
/// `value` is a map value that only this CPU and this program add to.
#[inline(always)]
unsafe fn increase(program: Program, value: *mut u64, amount: u64) {
    if program.is_preemptible() {
        // SAFETY: an aligned word.
        unsafe { add_shared(value, amount) };
    } else {
        // SAFETY: as above.
        unsafe { *value = (*value).wrapping_add(amount) };
    }
}
