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
        // SAFETY: as in `add`.
        Some(runs) => unsafe {
            *runs = (*runs).wrapping_add(1);
            *runs
        },
        None => 0,
    };
    timed_as(program, number, body);
}

/// The same for a program that counts its runs in memory of its own, on each CPU: here they are as of
/// the last one that was timed.
#[inline(always)]
pub fn timed_by(program: Program, runs: &mut u64, body: impl FnOnce()) {
    *runs = runs.wrapping_add(1);
    let number = *runs;
    if is_timed(number)
        && let Some(counted) = STATS.get_ptr_mut(slot(program, Counter::Runs))
    {
        // SAFETY: as in `add`.
        unsafe { *counted = number };
    }
    timed_as(program, number, body);
}

#[inline(always)]
fn is_timed(number: u64) -> bool {
    scrambled(number) < u32::MAX / TIMED_RUN_INTERVAL
}

#[inline(always)]
fn timed_as(program: Program, number: u64, body: impl FnOnce()) {
    let is_timed = is_timed(number);
    let start_ns = if is_timed { now_ns() } else { 0 };
    body();
    if start_ns != 0 {
        let run_ns = now_ns().wrapping_sub(start_ns);
        add(program, Counter::TimedNs, run_ns);
        count(program, Counter::TimedRuns);
        if let Some(runs) = RUN_TIMES.get_ptr_mut(run_time_slot(program, run_ns)) {
            // SAFETY: as in `add`.
            unsafe { *runs = (*runs).wrapping_add(1) };
        }
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

#[inline(always)]
fn add(program: Program, counter: Counter, amount: u64) {
    if let Some(value) = STATS.get_ptr_mut(slot(program, counter)) {
        // SAFETY: the pointer is to this CPU's slot. An interrupt may lose an increment of
        // a program that it interrupts only if both keep the same slot, which none do.
        unsafe { *value = (*value).wrapping_add(amount) };
    }
}
