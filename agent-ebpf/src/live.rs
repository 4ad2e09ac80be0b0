//! `alloc`, mode `live`: what the library in a process reports of objects that it samples.
//!
//! The library chooses them and calls one of two functions that do nothing; the programs here are
//! uprobes on those. What the arguments are is in `everflame_agent_common::live`.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::uprobe, programs::ProbeContext};
use everflame_agent_common::{
    event::Kind,
    live::Allocated,
    stats::{Counter, Program},
    wait::Weight,
};

use crate::{allocation, maps::config, sample, stats};

/// Runs at each sampled allocation, in its thread, when the allocator has returned the object.
#[uprobe]
fn alloc_sampled(ctx: ProbeContext) -> u32 {
    stats::timed(Program::Allocated, || allocated(&ctx));
    0
}

/// Runs when a sampled object is about to be freed.
#[uprobe]
fn free_sampled(ctx: ProbeContext) -> u32 {
    stats::timed(Program::Freed, || freed(&ctx));
    0
}

#[inline(always)]
fn allocated(ctx: &ProbeContext) {
    if !is_target() {
        return stats::count(Program::Allocated, Counter::Filtered);
    }
    let argument = |number| ctx.arg::<u64>(number).unwrap_or(0);
    let (address, size, period) = (argument(0), argument(1), argument(2));
    let allocated = Allocated { address, size, period, flags: argument(3) };
    // What it stands for is not for integers.
    let weight = Weight { value: size, count: 1 };
    let detail = allocated.to_detail();
    allocation::sample(Program::Allocated, Kind::Allocated, weight, detail);
}

/// Without a stack, so that it needs no memory that could be in use: an object whose end is lost would
/// look like a leak.
#[inline(always)]
fn freed(ctx: &ProbeContext) {
    if !is_target() {
        return stats::count(Program::Freed, Counter::Filtered);
    }
    let address = ctx.arg::<u64>(0).unwrap_or(0);
    let detail = Allocated { address, ..Allocated::default() }.to_detail();
    sample::submit_without_stacks(Program::Freed, Kind::Freed, detail);
}

/// Whether the current process is looked at.
#[inline(always)]
fn is_target() -> bool {
    let target = config!(target_pid);
    target == 0 || target == (bpf_get_current_pid_tgid() >> 32) as u32
}
