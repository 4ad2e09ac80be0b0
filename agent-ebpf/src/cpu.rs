//! `cpu`: a sample of what each CPU is doing.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::PerfEventContext};
use everflame_agent_common::{
    event::Kind,
    stats::{Counter, Program},
    unwind::Stop,
    wait::Weight,
};

use crate::{
    maps::{CONFIG, CPU_RULES, CPU_SCRATCH, CPU_WALK},
    registers::{self, Found},
    stats,
};

/// Samples the current task.
#[inline(always)]
pub fn sample(ctx: &PerfEventContext) {
    let config = CONFIG.load();
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if pid == 0 {
        return stats::count(Program::Cpu, Counter::Idle);
    }
    if config.target_pid != 0 && config.target_pid != pid {
        return stats::count(Program::Cpu, Counter::Filtered);
    }
    let (Some(scratch), Some(walk), Some(rules)) =
        (CPU_SCRATCH.get_ptr_mut(0), CPU_WALK.get_ptr_mut(0), CPU_RULES.get_ptr_mut(0))
    else {
        return stats::count(Program::Cpu, Counter::NoScratch);
    };
    // SAFETY: this CPU's memory, three maps; the sampler does not interrupt itself.
    let (scratch, walk, rules) = unsafe { (&mut *scratch, &mut *walk, &mut *rules) };

    scratch.begin(Kind::Cpu, Weight { value: config.cpu_period_ns, count: 1 });
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
