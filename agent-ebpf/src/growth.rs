//! `alloc`, mode `faults`: which code makes a process grow.
//!
//! What is counted, and how it is sampled, is in `everflame_agent_common::growth`.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::task_struct,
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use everflame_agent_common::{
    event::Kind,
    growth::{Backing, Growth, GrowthSeen},
    stats::{Counter, Program},
    wait::{Thinning, Weight, count_down},
};

use crate::{
    lock,
    maps::{GROWTH, GROWTH_SEEN, config},
    stats,
    task::{field, pid},
};

/// Runs at each change of the kernel's counters of a process's pages. Its arguments are (memory,
/// index of the counter).
#[btf_tracepoint(function = "rss_stat")]
fn growth(ctx: BtfTracePointContext) -> i32 {
    let (memory, index): (*const c_void, u64) = (ctx.arg(0), ctx.arg::<u64>(1) & 0xffff_ffff);
    let Some(seen) = GROWTH_SEEN.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's memory; the program does not interrupt itself.
    let seen = unsafe { &mut *seen };
    seen.runs = seen.runs.wrapping_add(1);
    let start_ns = stats::start_ns(seen.runs);
    // SAFETY: the tracepoint's argument is a process's memory.
    unsafe { changed(&ctx, memory, index, seen) };
    if start_ns != 0 {
        // As of the last one that was timed: that is soon enough.
        stats::set_runs(Program::Growth, seen.runs);
        stats::took(Program::Growth, start_ns);
    }
    0
}

/// Looks whether the kernel has taken a batch in.
///
/// # Safety
/// `memory` comes from the kernel, which knows it for an `mm_struct`.
#[inline(always)]
unsafe fn changed(
    ctx: &impl EbpfContext,
    memory: *const c_void,
    index: u64,
    seen: &mut GrowthSeen,
) {
    // One offset that is known beforehand for each, as the kernel wants it.
    // SAFETY: as the caller says.
    let pages = unsafe {
        if index == Backing::Anonymous as u64 {
            counter(memory, Backing::Anonymous)
        } else if index == Backing::File as u64 {
            counter(memory, Backing::File)
        } else if index == Backing::Shared as u64 {
            counter(memory, Backing::Shared)
        } else {
            return;
        }
    };
    let at = (index & 3) as usize;
    // SAFETY: a helper without arguments, and a task.
    let (task, pid) = unsafe {
        let task = bpf_get_current_task_btf();
        (task, pid(task))
    };
    // Here nearly all of it ends.
    if seen.knows(memory as u64, pid, at, pages) {
        return;
    }
    // A copy that is being made, or pages that the kernel takes from another process.
    // SAFETY: a task.
    if unsafe { field::<_, *const c_void>(task, config!(task_mm_offset)) } != memory {
        return;
    }
    if config!(target_pid) != 0 && config!(target_pid) != pid {
        return;
    }
    // SAFETY: a task; its process's first thread is one, too.
    let known = unsafe {
        let leader: *mut task_struct = field(task, config!(task_leader_offset));
        GROWTH.get_or_create(leader)
    };
    let Some(known) = known else { return stats::count(Program::Growth, Counter::Untracked) };
    seen.note(memory as u64, pid, at, pages);
    // SAFETY: a map value. Threads of the process may use it at the same time: each takes what
    // it is the first to see.
    let known = unsafe { &mut *known };
    if known.memory != memory as u64 {
        // SAFETY: as the caller says.
        let pages = unsafe {
            [
                counter(memory, Backing::File),
                counter(memory, Backing::Anonymous),
                0,
                counter(memory, Backing::Shared),
            ]
        };
        let left = stats::random_below(config!(growth_period_bytes));
        *known = Growth { memory: memory as u64, pages, left };
        return;
    }
    let grown = pages.wrapping_sub(known.pages[at]) as i64;
    known.pages[at] = pages;
    if grown > 0 {
        sample(ctx, known, index, grown as u64, &mut seen.thinning);
    }
}

/// One of the kernel's counters of a process's pages.
///
/// # Safety
/// As of [`changed`].
#[inline(always)]
unsafe fn counter(memory: *const c_void, backing: Backing) -> u64 {
    let stride = config!(mm_pages_stride);
    let offset = config!(mm_pages_offset) + stride * backing as u32;
    if stride as usize == size_of::<u64>() {
        // Nothing but atomics, before Linux 6.2: its verifier does not let a program read into such an array.
        // SAFETY: the helper checks the address.
        return unsafe { bpf_probe_read_kernel(memory.byte_add(offset as usize).cast()) }
            .unwrap_or(0);
    }
    // SAFETY: the kernel knows that there is such a counter.
    unsafe { field(memory, offset) }
}

/// Samples growth if it is its turn.
#[inline(always)]
fn sample(
    ctx: &impl EbpfContext,
    known: &mut Growth,
    index: u64,
    pages: u64,
    thinning: &mut Thinning,
) {
    let bytes = pages * u64::from(config!(page_bytes));
    let (period, most) = (config!(growth_period_bytes), config!(growth_samples));
    let random = stats::scrambled(known.left ^ bytes);
    let Some(weight) = count_down(&mut known.left, bytes, period, random) else { return };
    thinning.advance(stats::now_ns(), GrowthSeen::INTERVAL_NS, most);
    let Some(weight) = thinning.keep(weight, period, most, random) else { return };
    if thinning.is_thinning() {
        stats::count(Program::Growth, Counter::Thinned);
    }
    let count = weight.value.checked_div(u64::from(config!(page_bytes))).unwrap_or(0);
    let weight = Weight { value: weight.value, count };
    let detail = [index, 0, 0, 0, 0, 0, 0, 0, 0];
    lock::sample(Program::Growth, Some(ctx), Kind::Growth, weight, detail);
}
