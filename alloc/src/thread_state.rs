//! What each thread keeps: how far it is from its next sample.
//!
//! `thread_local!` would be a call of `__tls_get_addr` for each allocation, as a shared library does not
//! know where its variables lie in a thread's block. A library that is there when the program starts does:
//! the loader has given it a place at a fixed distance from the thread pointer ("initial exec", ELF
//! Handling For Thread-Local Storage, 4.1.6), so the address is two instructions. That model cannot be
//! chosen in stable Rust, hence the assembler. Loaded with `dlopen` it still works while the loader has
//! some of its reserve left (glibc keeps 1.6 KiB, we need 32 bytes); musl refuses.

use core::arch::{asm, global_asm};

/// One thread's; all zero when the thread starts.
#[repr(C)]
pub(crate) struct ThreadState {
    /// Bytes to pass over before the next sample.
    pub(crate) countdown: i64,
    /// State of the generator of random numbers; 0 before the first allocation.
    pub(crate) random: u64,
    /// The period that `countdown` was drawn with, in bytes.
    pub(crate) period: u64,
    /// Not 0 while the real functions are being looked up: calls of `malloc` come from there.
    pub(crate) resolving: u64,
}

const _: () = assert!(size_of::<ThreadState>() == 32);

global_asm!(
    ".pushsection .tbss.everflame_alloc_thread, \"awT\", @nobits",
    ".balign 8",
    ".globl everflame_alloc_thread",
    ".hidden everflame_alloc_thread",
    ".type everflame_alloc_thread, @object",
    ".size everflame_alloc_thread, 32",
    "everflame_alloc_thread:",
    ".zero 32",
    ".popsection",
);

/// The running thread's state: valid until the thread ends, and used by no other.
///
/// A pointer, not a reference, as a signal handler that allocates may come in between any two uses of it.
#[inline(always)]
pub(crate) fn current() -> *mut ThreadState {
    let address: *mut ThreadState;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads the thread pointer, which the ABI keeps at fs:0, and an entry of our offset table.
    unsafe {
        asm!(
            "mov {0}, qword ptr fs:[0]",
            "add {0}, qword ptr [rip + everflame_alloc_thread@GOTTPOFF]",
            out(reg) address,
            options(pure, readonly, nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads the register of the thread pointer and an entry of our offset table.
    unsafe {
        asm!(
            "mrs {0}, tpidr_el0",
            "adrp {1}, :gottprel:everflame_alloc_thread",
            "ldr {1}, [{1}, :gottprel_lo12:everflame_alloc_thread]",
            "add {0}, {0}, {1}",
            out(reg) address,
            out(reg) _,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    address
}

/// Something that differs each time: a counter of the processor that programs may read.
pub(crate) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(target_arch = "aarch64")]
    {
        let ticks: u64;
        // SAFETY: Linux lets programs read the virtual counter.
        unsafe { asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack)) };
        ticks
    }
}
