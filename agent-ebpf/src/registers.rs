//! The user registers of the current task, wherever the event found it.
//!
//! When the event hit user mode its own registers are the user's. When it hit the kernel,
//! they are those that the kernel saved at entry, at the base of the task's kernel stack.
//! The only file that knows the layouts of x86_64 and aarch64.

use aya_ebpf::{
    bindings::bpf_perf_event_data,
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs},
};
use everflame_agent_common::unwind::Regs;

#[cfg(bpf_target_arch = "x86_64")]
type Saved = aya_ebpf::bindings::pt_regs;
#[cfg(bpf_target_arch = "aarch64")]
type Saved = aya_ebpf::bindings::user_pt_regs;

/// Where a perf event hit.
pub enum Hit {
    /// User code, with these registers.
    User(Regs),
    /// The kernel.
    Kernel,
}

/// What a perf event's own registers say.
#[inline(always)]
pub fn of_perf_event(ctx: *const bpf_perf_event_data) -> Hit {
    // SAFETY: the kernel hands perf_event programs a context with registers in it.
    match user_mode(unsafe { &(*ctx).regs }) {
        Some(regs) => Hit::User(regs),
        None => Hit::Kernel,
    }
}

/// What the current task had in its registers when it entered the kernel. `None` for a
/// kernel thread, which has not been in user mode.
#[inline(always)]
pub fn of_current_task() -> Option<Regs> {
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: the current task is alive.
    let saved = unsafe { bpf_task_pt_regs(task) } as *const Saved;
    // Copied rather than read in place: the verifier refuses an instruction that is reached
    // with pointers of two kinds, and the compiler merges these loads with those of a perf
    // event's registers.
    // SAFETY: the helper checks the address.
    let saved = unsafe { bpf_probe_read_kernel(saved) }.ok()?;
    user_mode(&saved)
}

/// The registers, if they are those of user mode. What is saved of kernel threads is zeros on
/// x86_64 and says "EL1" on aarch64, so it never passes for user mode.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn user_mode(saved: &Saved) -> Option<Regs> {
    const PRIVILEGE_MASK: u64 = 3;
    if saved.cs & PRIVILEGE_MASK != PRIVILEGE_MASK {
        return None;
    }
    // `__USER32_CS` of arch/x86/include/asm/segment.h.
    const COMPAT_CODE_SEGMENT: u64 = 0x23;
    let compat = saved.cs == COMPAT_CODE_SEGMENT;
    Some(Regs { ip: saved.rip, sp: saved.rsp, fp: saved.rbp, compat })
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn user_mode(saved: &Saved) -> Option<Regs> {
    const EXCEPTION_LEVEL_MASK: u64 = 0xf;
    const FRAME_POINTER: usize = 29;
    if saved.pstate & EXCEPTION_LEVEL_MASK != 0 {
        return None;
    }
    // `PSR_MODE32_BIT` of arch/arm64/include/uapi/asm/ptrace.h.
    const COMPAT_STATE: u64 = 0x10;
    let compat = saved.pstate & COMPAT_STATE != 0;
    Some(Regs { ip: saved.pc, sp: saved.sp, fp: saved.regs[FRAME_POINTER], compat })
}
