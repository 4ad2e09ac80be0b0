//! `alloc`, mode `window`: what processes ask their allocators for.
//!
//! How samples are chosen is in `everflame_agent_common::allocation`. The program runs in the task's own
//! context, where it may be interrupted and, on some kernels, preempted by another task's; so a sample is
//! built by one at a time.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_attach_cookie, macros::uprobe,
    programs::ProbeContext,
};
use everflame_agent_common::{
    allocation::{Allocation, MAX_OBJECT_BYTES, SMALL_ALIGNMENT, SizeArgument, size_argument},
    event::{DETAIL_WORDS, Kind},
    stats::{Counter, Program},
    wait::Weight,
};

use crate::{
    maps::{
        ALLOCATION_COUNTDOWN, ALLOCATION_RULES, ALLOCATION_SAMPLING, ALLOCATION_SCRATCH,
        ALLOCATION_WALK, config,
    },
    registers,
    sample::{Memory, sample_current_task},
    stats,
};

/// Runs when an allocator's function is called.
#[uprobe]
fn allocation(ctx: ProbeContext) -> u32 {
    stats::timed(Program::Allocation, || allocated(&ctx));
    0
}

#[inline(always)]
fn allocated(ctx: &ProbeContext) {
    // SAFETY: a helper for the context of this program type.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let size = size(ctx, cookie);
    if size > MAX_OBJECT_BYTES {
        return stats::count(Program::Allocation, Counter::Filtered);
    }
    let Some(countdown) = ALLOCATION_COUNTDOWN.get_ptr_mut(0) else {
        return stats::count(Program::Allocation, Counter::NoScratch);
    };
    let period = config!(window_period_bytes);
    // SAFETY: this CPU's. A task that is preempted here may undo what another has counted meanwhile: one
    // object in millions.
    let is_sampled = unsafe { (*countdown).pass(size, period, random) };
    if is_sampled {
        // What it stands for is reckoned where there are fractions.
        let weight = Weight { value: size, count: 1 };
        let detail = Allocation::detail(period, cookie);
        sample(Program::Allocation, Kind::Allocation, weight, detail);
    }
}

/// How many bytes are asked for.
#[inline(always)]
fn size(ctx: &ProbeContext, cookie: u64) -> u64 {
    // SAFETY: the context of this program type.
    let [first, second, third] = unsafe { registers::arguments(ctx.regs) };
    const FIRST: u64 = SizeArgument::First as u64;
    const SECOND: u64 = SizeArgument::Second as u64;
    const THIRD: u64 = SizeArgument::Third as u64;
    const PRODUCT: u64 = SizeArgument::Product as u64;
    const UNLESS_NULL: u64 = SizeArgument::SecondUnlessNull as u64;
    const UNLESS_SMALL: u64 = SizeArgument::SecondUnlessSmall as u64;
    match size_argument(cookie) {
        FIRST => first,
        SECOND => second,
        THIRD => third,
        PRODUCT => first.wrapping_mul(second),
        // 0 bytes are never sampled.
        UNLESS_NULL if first == 0 => 0,
        UNLESS_SMALL if first <= SMALL_ALIGNMENT => 0,
        UNLESS_NULL | UNLESS_SMALL => second,
        // SAFETY: as above.
        _ => unsafe { registers::first_argument_of_go(ctx.regs) },
    }
}

/// Samples the current task, which asks for memory or has got it.
#[inline(always)]
pub fn sample(program: Program, kind: Kind, weight: Weight, detail: [u64; DETAIL_WORDS]) {
    let (Some(is_sampling), Some(scratch), Some(walk), Some(rules)) = (
        ALLOCATION_SAMPLING.get_ptr_mut(0),
        ALLOCATION_SCRATCH.get_ptr_mut(0),
        ALLOCATION_WALK.get_ptr_mut(0),
        ALLOCATION_RULES.get_ptr_mut(0),
    ) else {
        return stats::count(program, Counter::NoScratch);
    };
    // SAFETY: this CPU's maps, which nothing else uses.
    let memory = unsafe { Memory::new(is_sampling, scratch, walk, rules) };
    sample_current_task::<ProbeContext>(program, memory, None, kind, weight, detail);
}

/// Any number of 64 bits.
#[inline(always)]
fn random() -> u64 {
    u64::from(stats::random()) << 32 | u64::from(stats::random())
}
