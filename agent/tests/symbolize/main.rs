//! Symbolisation of real binaries, built here by the compilers of the machine, with what
//! binutils says about them as the truth.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod binary;
mod cache;
mod data;
mod debug_files;
mod elf;
mod hostile;
mod jit;
mod kernel;
mod loaded;
