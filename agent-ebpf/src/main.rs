//! The BPF programs of everflame: entry points only.
//!
//! Each program decides whether an event is worth a sample, takes the stacks of the task it
//! ran into, and hands one record to the ring buffer. Every early exit is counted.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod cpu;
mod exec;
mod kernel;
mod lock;
mod maps;
mod registers;
mod sample;
mod stats;
mod unwind;
mod wait;

use aya_ebpf::{
    macros::{btf_tracepoint, kprobe, perf_event, raw_tracepoint},
    programs::{BtfTracePointContext, PerfEventContext, ProbeContext, RawTracePointContext},
};
use everflame_agent_common::stats::Program;

/// On-CPU time: runs at each tick of a sampling clock, on every CPU.
#[perf_event]
fn cpu_sample(ctx: PerfEventContext) -> u32 {
    stats::timed(Program::Cpu, || cpu::sample::<kernel::Recent>(&ctx));
    0
}

/// The same for kernels before 5.17.
#[perf_event]
fn cpu_sample_old(ctx: PerfEventContext) -> u32 {
    stats::timed(Program::Cpu, || cpu::sample::<kernel::Old>(&ctx));
    0
}

/// Runs at the end of each exec.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn process_exec(_ctx: RawTracePointContext) -> i32 {
    stats::timed(Program::Exec, exec::forget_layout);
    0
}

/// Runs in each switch, when the outgoing task is still the current one. Its arguments are
/// (preempted, previous task, next task, state of the previous task).
#[btf_tracepoint(function = "sched_switch")]
fn switch_out(ctx: BtfTracePointContext) -> i32 {
    stats::timed(Program::SwitchOut, || {
        wait::switch_out::<kernel::Recent>(ctx.arg::<u64>(0) & 1 != 0, ctx.arg::<u64>(3) as u32);
    });
    0
}

/// Runs at the end of the scheduler, in the task that it has chosen. Its argument says
/// whether that is another than before.
#[btf_tracepoint(function = "sched_exit_tp")]
fn switch_in(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<u64>(0) & 1 != 0 {
        stats::timed(Program::SwitchIn, || wait::switch_in::<kernel::Recent>(&ctx));
    }
    0
}

/// The same where the scheduler has no such tracepoint: on entry to `finish_task_switch`,
/// which the chosen task runs.
#[kprobe]
fn switch_in_kprobe(ctx: ProbeContext) -> u32 {
    stats::timed(Program::SwitchIn, || wait::switch_in::<kernel::Recent>(&ctx));
    0
}

/// Runs when somebody is about to wake a task, which is the argument.
#[btf_tracepoint(function = "sched_waking")]
fn waking(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    stats::timed(Program::Waking, || {
        // SAFETY: the tracepoint's argument is a task.
        unsafe { wait::waking::<kernel::Recent>(task) };
    });
    0
}

/// Runs for each task on the host when the agent asks which of them wait; a task iterator.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn waiting(ctx: *const wait::EachTask) -> i32 {
    stats::timed(Program::Waiting, || {
        // SAFETY: the context of this program type.
        unsafe { wait::waiting(ctx) };
    });
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
