//! `cpu`: a sample of what each CPU is doing.

#[cfg(not(feature = "old-kernels"))]
use aya_ebpf::helpers::bpf_get_current_task_btf;
use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::PerfEventContext};
use everflame_agent_common::{
    event::Kind,
    stats::{Counter, Program},
    unwind::Stop,
    wait::Weight,
};

#[cfg(not(feature = "old-kernels"))]
use crate::{maps::CPU_TIMES, task};
use crate::{
    maps::{CPU_RULES, CPU_SCRATCH, CPU_WALK, config},
    registers::{self, Found},
    stats,
};

/// Samples the current task.
#[inline(always)]
pub fn sample(ctx: &PerfEventContext) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if pid == 0 {
        return stats::count(Program::Cpu, Counter::Idle);
    }
    if config!(target_pid) != 0 && config!(target_pid) != pid {
        return stats::count(Program::Cpu, Counter::Filtered);
    }
    let (Some(scratch), Some(walk), Some(rules)) =
        (CPU_SCRATCH.get_ptr_mut(0), CPU_WALK.get_ptr_mut(0), CPU_RULES.get_ptr_mut(0))
    else {
        return stats::count(Program::Cpu, Counter::NoScratch);
    };
    // SAFETY: this CPU's memory, three maps; the sampler does not interrupt itself.
    let (scratch, walk, rules) = unsafe { (&mut *scratch, &mut *walk, &mut *rules) };

    scratch.begin(Kind::Cpu, Weight { value: value_ns(), count: 1 });
    let mut found = registers::of_perf_event(ctx.ctx, &mut walk.registers);
    if found == Found::Kernel {
        scratch.take_kernel_stack(ctx);
        found = registers::of_current_task(&mut walk.registers);
    }
    match found {
        Found::User => scratch.take_user_stack(Program::Cpu, walk, rules),
        Found::Compat => scratch.take_leaf(walk.registers.ip, Stop::Compat),
        Found::Kernel => {}
    }
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::debug!(ctx, "sample of process {}", pid);
    scratch.submit(Program::Cpu);
}

/// What a sample of the current task stands for.
#[inline(always)]
fn value_ns() -> u64 {
    let period_ns = config!(cpu_period_ns);
    #[cfg(not(feature = "old-kernels"))]
    if let Some(value_ns) = accounted_ns(period_ns) {
        return value_ns;
    }
    period_ns
}

/// The same by the scheduler's account. `None` if there is none, or no memory to follow it.
#[cfg(not(feature = "old-kernels"))]
#[inline(always)]
fn accounted_ns(period_ns: u64) -> Option<u64> {
    // SAFETY: the kernel's own pointer to the current task, which is not going away; and a map
    // value of a task that this CPU alone runs.
    unsafe {
        let task = bpf_get_current_task_btf();
        let account_ns = task::cpu_time_ns(task)?;
        Some((*CPU_TIMES.get_or_create(task)?).sampled(account_ns, period_ns))
    }
}
