//! What the kernel keeps of a task.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{bindings::task_struct, helpers::generated::bpf_probe_read_kernel};

use crate::maps::config;

/// A member of a structure of the kernel.
///
/// # Safety
/// `of` comes from the kernel, which knows its type, and that it has a `T` at the offset.
#[inline(always)]
pub unsafe fn field<S, T>(of: *const S, offset: u32) -> T {
    // SAFETY: the verifier checks the offset against the kernel's types.
    unsafe { of.byte_add(offset as usize).cast::<T>().read() }
}

/// The same, through a helper that checks the address, of what the verifier knows nothing of. Zeros where it
/// cannot be read.
#[inline(always)]
pub fn read_kernel<S, T: Copy>(of: *const S, offset: u32) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: there is room; the helper writes zeros if it fails. `T` is used with numbers and pointers only.
    unsafe {
        let from = of.wrapping_byte_add(offset as usize).cast::<c_void>();
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from);
        value.assume_init()
    }
}

/// The id of a thread.
///
/// # Safety
/// `task` comes from the kernel, which knows it for a task.
#[inline(always)]
pub unsafe fn tid(task: *const task_struct) -> u32 {
    // SAFETY: as the caller says.
    unsafe { field(task, config!(task_pid_offset)) }
}

/// The id of a thread's process.
///
/// # Safety
/// As of [`tid`].
#[inline(always)]
pub unsafe fn pid(task: *const task_struct) -> u32 {
    // SAFETY: as the caller says.
    unsafe { field(task, config!(task_tgid_offset)) }
}

/// How long a thread has been ready to run but not on a CPU, in all its life, up to when it was last
/// given one: the kernel's own account, field 2 of /proc/PID/schedstat. 0 where it has none.
///
/// # Safety
/// As of [`tid`].
#[inline(always)]
pub unsafe fn run_delay_ns(task: *const task_struct) -> u64 {
    let offset = config!(task_run_delay_offset);
    // SAFETY: as the caller says.
    if offset == 0 { 0 } else { unsafe { field(task, offset) } }
}

/// Whether a task is ready to run but not on a CPU.
///
/// # Safety
/// As of [`tid`].
#[inline(always)]
pub unsafe fn is_queued(task: *const task_struct) -> bool {
    let offset = config!(task_queued_offset);
    // SAFETY: as the caller says.
    offset != 0 && unsafe { field::<_, u64>(task, offset) } != 0
}

/// How long a thread has been on CPUs, in all its life, up to when the scheduler last looked: mostly in
/// its last tick. `None` if samples do without.
///
/// # Safety
/// As of [`tid`].
#[inline(always)]
pub unsafe fn cpu_time_ns(task: *const task_struct) -> Option<u64> {
    let offset = config!(task_cpu_time_offset);
    // SAFETY: as the caller says.
    if offset == 0 { None } else { Some(unsafe { field(task, offset) }) }
}
