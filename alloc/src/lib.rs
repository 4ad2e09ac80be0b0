//! `libeverflame_alloc.so`: samples a process's allocations from within.
//!
//! Loaded with `LD_PRELOAD`, it takes the place of `malloc` and its relatives, passes every call on to
//! the functions it stands before, and by chance, one byte in so many, calls an exported function that
//! does nothing. A profiler puts an uprobe there: one trap per sample instead of one per allocation.
//! While none is attached, which the kernel tells by a counter, a call costs a load and a jump more.
//!
//! How a call passes through:
//!
//! ```text
//! malloc   -> real malloc -> countdown of this thread -> every so often: sample -> live, abi
//! free     -> is the address one of those sampled? -> abi -> real free
//! ```
//!
//! What always holds:
//!
//! - No function here allocates, takes a lock, makes a system call or panics. So it may run in any
//!   thread, in a signal handler, between `fork` and `exec`.
//! - An address in the table of sampled objects is one that the program owns: it is entered before the
//!   program gets it, and leaves, and is reported, before the real `free` can give it away again.
//! - Memory is that of the real allocator, unchanged: no headers, no other sizes. So it does not matter
//!   if some call goes past this library.
//!
//! The exported names and their meaning are an interface between versions: see [`abi`].
//!
//! What is handed out is built with `cargo build --profile preload -p everflame-alloc`. With panics that abort,
//! the library needs neither Rust's standard library nor libgcc, and of the C library only names that
//! have been there since its first version; built with another profile it has both in it, and starts
//! only where the C library is as new as that of the machine it was built on.

#![cfg_attr(panic = "abort", no_std)]

pub mod abi;
mod arena;
mod distance;
mod interpose;
mod live;
mod real;
mod sample;
mod start;
mod thread_state;

/// Never called: nothing here panics. The language wants it to be there.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
