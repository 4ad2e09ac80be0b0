//! `cpu`: a sample of what each CPU is doing.

use aya_ebpf::{helpers::bpf_get_current_pid_tgid, programs::PerfEventContext};
use everflame_agent_common::{
    event::Kind,
    stats::{Counter, Program},
};

use crate::{
    maps::{CONFIG, CPU_SCRATCH},
    registers::{self, Hit},
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
    let Some(scratch) = CPU_SCRATCH.get_ptr_mut(0) else {
        return stats::count(Program::Cpu, Counter::NoScratch);
    };
    // SAFETY: this CPU's buffer; the sampler does not interrupt itself.
    let scratch = unsafe { &mut *scratch };

    scratch.begin(Kind::Cpu, config.cpu_period_ns);
    let user = match registers::of_perf_event(ctx.ctx) {
        Hit::User(regs) => Some(regs),
        Hit::Kernel => {
            scratch.take_kernel_stack(ctx);
            registers::of_current_task()
        }
    };
    if let Some(regs) = user {
        scratch.take_user_stack(regs);
    }
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::debug!(ctx, "sample of process {}", pid);
    scratch.submit(Program::Cpu);
}
