//! The BPF programs of everflame: entry points only.
//!
//! Each program decides whether an event is worth a sample, takes the stacks of the task it
//! ran into, and hands one record to the ring buffer. Every early exit is counted.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// Parts of what all hooks share.
#![cfg_attr(feature = "old-kernels", allow(dead_code))]

#[cfg(not(feature = "old-kernels"))]
mod allocation;
mod block;
mod cpu;
mod exec;
#[cfg(not(feature = "old-kernels"))]
mod growth;
mod kernel;
#[cfg(not(feature = "old-kernels"))]
mod kernel_lock;
mod last_walk;
#[cfg(not(feature = "old-kernels"))]
mod live;
#[cfg(not(feature = "old-kernels"))]
mod lock;
mod maps;
mod marks;
#[cfg(not(feature = "old-kernels"))]
mod oom;
mod registers;
mod sample;
mod stats;
#[cfg(not(feature = "old-kernels"))]
mod switches;
mod task;
#[cfg(not(feature = "old-kernels"))]
mod task_storage;
mod tcp;
mod unwind;
#[cfg(not(feature = "old-kernels"))]
mod wait;

use aya_ebpf::{
    macros::{perf_event, raw_tracepoint},
    programs::{PerfEventContext, RawTracePointContext},
};
use everflame_agent_common::stats::Program;

/// On-CPU time: runs at each tick of a sampling clock, on every CPU.
#[perf_event]
fn cpu_sample(ctx: PerfEventContext) -> u32 {
    stats::timed(Program::Cpu, || cpu::sample(&ctx));
    0
}

/// Runs at the end of each exec.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_exec(_ctx: RawTracePointContext) -> i32 {
    stats::timed(Program::Exec, exec::forget_layout);
    0
}

/// A license that lets the kernel offer all of its helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this can be reached.
    loop {}
}
