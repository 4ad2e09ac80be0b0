//! What a profiler sees of this library: two functions to trap, and numbers to read.
//!
//! A profiler attaches uprobes to [`everflame_alloc_sampled`] and [`everflame_free_sampled`], both with
//! [`everflame_alloc_semaphore`] as their reference counter (`ref_ctr_offset`), which makes the kernel
//! count up the variable in each process that has the probe, and down when it is detached or the profiler
//! dies. An old library meets a new profiler and the other way round, so nothing here changes its meaning.
//!
//! Statics are aligned so that those which each allocation reads do not lie beside those which each
//! sample writes.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU16, AtomicU64};

/// A cache line of its own.
#[repr(C, align(64))]
pub struct Line<T>(pub(crate) T);

/// Pages of its own, in memory and in the file; as large as pages get on the machine.
#[repr(C)]
#[cfg_attr(target_arch = "x86_64", repr(align(4096)))]
#[cfg_attr(target_arch = "aarch64", repr(align(65536)))]
pub struct Page<T>(pub(crate) T);

/// How many probes are attached; 0 means that nothing is sampled. More than there are where the loader has
/// mapped the page with the functions more than once.
///
/// A child of `fork` begins with its parent's count and probes. If the profiler has asked for the parent only, the
/// kernel takes the child's probes away, and its count down, when the child meets them.
///
/// A `u16` in native byte order, as with USDT probes. It has to have a place in the file, as that is how
/// the kernel is told of it: so not in `.bss`. And no other segment may begin or end in that page of the file: the
/// kernel counts in the first writable mapping of the page that it meets, which would be the one that
/// becomes read-only after relocation.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".probes")]
pub static everflame_alloc_semaphore: Page<AtomicU16> = Page(AtomicU16::new(0));

/// One allocated byte in so many is sampled, on average: a `u64`, in bytes.
///
/// `EVERFLAME_ALLOC_PERIOD` in the environment sets it at start. It may be written to at any time: each
/// thread takes it up with its next sample, and each sample says which period it was taken with.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data")]
pub static everflame_alloc_period: AtomicU64 = AtomicU64::new(512 << 10);

/// Allocations sampled since the process started: a `u64`.
#[unsafe(no_mangle)]
pub static everflame_alloc_samples: Line<AtomicU64> = Line(AtomicU64::new(0));

/// Sampled objects whose end will be reported and has not been yet: a `u64`.
#[unsafe(no_mangle)]
pub static everflame_alloc_live: AtomicU64 = AtomicU64::new(0);

/// Samples for which the table of live objects had no room: a `u64`. They were reported as
/// allocations, with [`WILL_BE_FREED`] unset.
#[unsafe(no_mangle)]
pub static everflame_alloc_dropped: AtomicU64 = AtomicU64::new(0);

/// Flag of [`everflame_alloc_sampled`]: [`everflame_free_sampled`] will be called for the address.
pub const WILL_BE_FREED: u64 = 1;

/// Flag of [`everflame_alloc_sampled`]: not a new object. It has been reported as allocated, with the same
/// size, and then as freed by a `realloc` which failed; so it is there still.
pub const RESTORED: u64 = 2;

/// Does nothing: called for each sampled allocation, after the allocator has returned it.
///
/// Arguments are in the registers of the C calling convention: `rdi`, `rsi`, `rdx`, `rcx` or `x0` to `x3`.
///
/// - `address`: of the object.
/// - `size`: bytes that were asked for.
/// - `period`: mean distance of samples, in bytes, that this one was taken with. An object of `size` bytes
///   is sampled with probability `p = 1 - exp(-size / period)`, so it stands for `1 / p` such objects.
/// - `flags`: [`WILL_BE_FREED`], [`RESTORED`].
///
/// The caller's caller, or the one above, is `malloc` or a relative of it; above that is the program.
///
/// Its first instruction is a no-operation, so that the kernel need not single-step anything. It is one of a
/// single byte: one of five bytes would be replaced by a call since Linux 6.18, into a page that children
/// of fork do not have. Such a child dies at its first sample (seen with 6.18.44).
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub extern "C" fn everflame_alloc_sampled(
    _address: *mut u8,
    _size: usize,
    _period: u64,
    _flags: u64,
) {
    naked_asm!(".cfi_startproc", "nop", "ret", ".cfi_endproc");
}

/// Does nothing: called for each object that was sampled with [`WILL_BE_FREED`] when the program
/// frees it or hands it to `realloc`, before the allocator can give out the address again.
///
/// `address` is in `rdi` or `x0`. Also called for objects sampled before the profiler attached.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub extern "C" fn everflame_free_sampled(_address: *mut u8) {
    naked_asm!(".cfi_startproc", "nop", "ret", ".cfi_endproc");
}
