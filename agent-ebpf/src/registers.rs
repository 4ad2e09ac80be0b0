//! The user registers of the current task, wherever the event found it.
//!
//! When the event hit user mode its own registers are the user's. When it hit the kernel,
//! they are those that the kernel saved at entry, at the base of the task's kernel stack.
//! The only file that knows the layouts of x86_64 and aarch64.

use core::ffi::c_void;

use aya_ebpf::helpers::generated;
use aya_ebpf::{
    bindings::{bpf_perf_event_data, pt_regs, task_struct},
    helpers::{
        bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_task_pt_regs,
    },
};
use everflame_agent_common::unwind::Registers;

use crate::{kernel, maps::config};

#[cfg(bpf_target_arch = "x86_64")]
type Saved = aya_ebpf::bindings::pt_regs;
#[cfg(bpf_target_arch = "aarch64")]
type Saved = aya_ebpf::bindings::user_pt_regs;

/// Whose registers have been found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Those of user code.
    User,
    /// Those of a program of another word size, whose stack is not walked.
    Compat,
    /// The kernel's.
    Kernel,
}

/// What a perf event's own registers say; writes them down if they are the user's.
#[inline(always)]
pub fn of_perf_event(ctx: *const bpf_perf_event_data, regs: &mut Registers) -> Found {
    // SAFETY: the kernel hands perf_event programs a context with registers in it.
    take(unsafe { &(*ctx).regs }, regs)
}

/// What the current task had in its registers when it entered the kernel: [`Found::Kernel`]
/// for a kernel thread, which has not been in user mode.
#[inline(always)]
pub fn of_current_task(regs: &mut Registers) -> Found {
    match saved_by_current_task() {
        Some(saved) => copy(saved, regs),
        None => Found::Kernel,
    }
}

/// Where the kernel has saved the current task's registers.
#[inline(always)]
pub fn saved_by_current_task() -> Option<u64> {
    if kernel::HAS_TASK_REGISTERS {
        // SAFETY: a helper without arguments.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: the current task is alive.
        return Some((unsafe { bpf_task_pt_regs(task) }) as u64);
    }
    // What the helper does: they end where the task's kernel stack does.
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let stack = task.wrapping_add(u64::from(config!(task_stack_offset))) as *const u64;
    // SAFETY: the helper checks the address.
    let stack = unsafe { bpf_probe_read_kernel(stack) }.ok()?;
    Some(stack.wrapping_add(u64::from(config!(stack_registers_offset))))
}

/// Where the kernel has saved the registers of a task; the verifier knows it for that.
///
/// # Safety
/// `task` comes from the kernel, which knows it for a task.
#[inline(always)]
pub unsafe fn saved_by(task: *mut task_struct) -> *const Saved {
    // SAFETY: a task.
    (unsafe { bpf_task_pt_regs(task) }) as *const Saved
}

/// The system call that a task is in: its number, -1 for none, and its first two arguments.
///
/// # Safety
/// `saved` is what [`saved_by`] says.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn system_call(saved: *const Saved) -> (i64, [u64; 2]) {
    // SAFETY: the kernel reads zeros where there is nothing.
    unsafe { ((*saved).orig_rax as i64, [(*saved).rdi, (*saved).rsi]) }
}

/// The system call that a task is in: its number, -1 for none, and its first two arguments.
///
/// # Safety
/// `saved` is what [`saved_by`] says.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub unsafe fn system_call(saved: *const Saved) -> (i64, [u64; 2]) {
    // Behind the part of `struct pt_regs` that user space knows (arch/arm64/include/asm/ptrace.h).
    #[repr(C)]
    struct Entered {
        registers: Saved,
        original_x0: u64,
        number: i32,
    }
    let entered: *const Entered = saved.cast();
    // SAFETY: the kernel reads zeros where there is nothing.
    unsafe {
        (i64::from((*entered).number), [(*entered).original_x0, (*entered).registers.regs[1]])
    }
}

/// The first three arguments of a function of C that a probe is at the entry of. All are read, as a pointer to
/// one or the other would be one that the verifier does not know.
///
/// # Safety
/// `regs` is the context of a probe.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn arguments(regs: *const pt_regs) -> [u64; 3] {
    // SAFETY: as the caller says.
    unsafe {
        [
            (&raw const (*regs).rdi).read_volatile(),
            (&raw const (*regs).rsi).read_volatile(),
            (&raw const (*regs).rdx).read_volatile(),
        ]
    }
}

/// The same on aarch64.
///
/// # Safety
/// As above.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub unsafe fn arguments(regs: *const pt_regs) -> [u64; 3] {
    let general = regs.cast::<u64>();
    // SAFETY: as the caller says; the general registers come first.
    unsafe {
        [general.read_volatile(), general.add(1).read_volatile(), general.add(2).read_volatile()]
    }
}

/// The first argument of a function of Go, by its ABIInternal.
///
/// # Safety
/// `regs` is the context of a probe.
#[inline(always)]
pub unsafe fn first_argument_of_go(regs: *const pt_regs) -> u64 {
    #[cfg(bpf_target_arch = "x86_64")]
    // SAFETY: as the caller says.
    return unsafe { (&raw const (*regs).rax).read_volatile() };
    #[cfg(bpf_target_arch = "aarch64")]
    // SAFETY: as the caller says; x0, the first of all.
    return unsafe { regs.cast::<u64>().read_volatile() };
}

/// Takes registers that the kernel has saved. By way of a map value, as all of them would be a third of
/// the BPF stack; and copied rather than read in place: the verifier refuses an instruction that is
/// reached with pointers of two kinds, and the compiler merges these loads with those of a perf
/// event's registers.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn copy(saved: u64, regs: &mut Registers) -> Found {
    use core::mem::offset_of;
    const _: () = assert!(
        offset_of!(Saved, r15) == 0
            && offset_of!(Saved, rdi) == 112
            && offset_of!(Saved, rsp) == offset_of!(Saved, rip) + 24
    );
    const FRAME: u64 = offset_of!(Saved, rip) as u64;
    /// By DWARF number, in the order of `Saved`: r15 to r12, rbp, rbx, r11 to r8, rax, rcx, rdx,
    /// rsi, rdi.
    const ORDER: [usize; GENERAL as usize] = [15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5];
    const GENERAL: u32 = 15;
    /// Numbers from here on are of no general register.
    const UNUSED: usize = 16;
    // SAFETY: the helper checks the address.
    let frame = unsafe { bpf_probe_read_kernel(saved.wrapping_add(FRAME) as *const [u64; 4]) };
    let Ok([rip, cs, _flags, rsp]) = frame else { return Found::Kernel };
    let found = found(cs, rip, rsp);
    if found == Found::Kernel {
        return found;
    }
    regs.ip = rip;
    regs.sp = rsp;
    regs.interrupted = 1;
    let general = &mut regs.general;
    // SAFETY: there is room for as many; the helper checks the address.
    let read = unsafe {
        let unused = general[UNUSED..].as_mut_ptr();
        generated::bpf_probe_read_kernel(unused.cast(), GENERAL * 8, saved as *const c_void)
    };
    if read != 0 {
        return Found::Kernel;
    }
    let mut at = 0;
    while at < ORDER.len() {
        general[ORDER[at] & 31] = general[UNUSED + at];
        at += 1;
    }
    regs.fp = general[6];
    found
}

/// Takes registers that the kernel has saved. They are too many for the BPF stack, but lie
/// in the same order here and there.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn copy(saved: u64, regs: &mut Registers) -> Found {
    const GENERAL: usize = 31;
    const REST: u64 = core::mem::offset_of!(Saved, sp) as u64;
    const _: () = assert!(core::mem::offset_of!(Saved, regs) == 0 && REST == GENERAL as u64 * 8);
    // SAFETY: the helper checks the address.
    let rest = unsafe { bpf_probe_read_kernel(saved.wrapping_add(REST) as *const [u64; 3]) };
    let Ok([sp, pc, pstate]) = rest else { return Found::Kernel };
    let found = found(pstate);
    if found == Found::Kernel {
        return found;
    }
    // SAFETY: `general` has room for as many; the helper checks the address.
    let read = unsafe {
        generated::bpf_probe_read_kernel(
            regs.general.as_mut_ptr().cast(),
            REST as u32,
            saved as *const c_void,
        )
    };
    if read != 0 {
        return Found::Kernel;
    }
    regs.ip = pc;
    regs.sp = sp;
    regs.fp = regs.general[FRAME_POINTER];
    regs.interrupted = 1;
    found
}

/// Writes registers down if they are those of user mode. What is saved of kernel threads is
/// zeros on x86_64 and says "EL1" on aarch64. The kernel's workers for a process (io_uring,
/// vhost) have a copy of its registers, but no instruction and no stack.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn take(saved: &Saved, regs: &mut Registers) -> Found {
    let found = found(saved.cs, saved.rip, saved.rsp);
    if found == Found::Kernel {
        return found;
    }
    regs.ip = saved.rip;
    regs.sp = saved.rsp;
    regs.fp = saved.rbp;
    regs.interrupted = 1;
    // By DWARF number.
    let general = &mut regs.general;
    general[0] = saved.rax;
    general[1] = saved.rdx;
    general[2] = saved.rcx;
    general[3] = saved.rbx;
    general[4] = saved.rsi;
    general[5] = saved.rdi;
    general[8] = saved.r8;
    general[9] = saved.r9;
    general[10] = saved.r10;
    general[11] = saved.r11;
    general[12] = saved.r12;
    general[13] = saved.r13;
    general[14] = saved.r14;
    general[15] = saved.r15;
    found
}

/// Whose registers they are, by the code segment's privilege.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn found(cs: u64, rip: u64, rsp: u64) -> Found {
    const PRIVILEGE_MASK: u64 = 3;
    // `__USER32_CS` of arch/x86/include/asm/segment.h.
    const COMPAT_CODE_SEGMENT: u64 = 0x23;
    if cs & PRIVILEGE_MASK != PRIVILEGE_MASK || (rip == 0 && rsp == 0) {
        Found::Kernel
    } else if cs == COMPAT_CODE_SEGMENT {
        Found::Compat
    } else {
        Found::User
    }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn take(saved: &Saved, regs: &mut Registers) -> Found {
    let found = found(saved.pstate);
    if found == Found::Kernel {
        return found;
    }
    regs.ip = saved.pc;
    regs.sp = saved.sp;
    regs.fp = saved.regs[FRAME_POINTER];
    regs.interrupted = 1;
    let mut number = 0;
    while number < saved.regs.len() {
        regs.general[number] = saved.regs[number];
        number += 1;
    }
    found
}

#[cfg(bpf_target_arch = "aarch64")]
const FRAME_POINTER: usize = 29;

/// Whose registers they are, by the processor's state.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn found(pstate: u64) -> Found {
    const EXCEPTION_LEVEL_MASK: u64 = 0xf;
    // `PSR_MODE32_BIT` of arch/arm64/include/uapi/asm/ptrace.h.
    const COMPAT_STATE: u64 = 0x10;
    if pstate & EXCEPTION_LEVEL_MASK != 0 {
        Found::Kernel
    } else if pstate & COMPAT_STATE != 0 {
        Found::Compat
    } else {
        Found::User
    }
}
