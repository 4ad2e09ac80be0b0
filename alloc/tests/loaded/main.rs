//! The library in programs that it is loaded into: small ones in C with known answers
//! (`tests/programs/`), and some that people run.
//!
//! A test switches sampling on as the kernel would for an uprobe, by counting up the exported variable;
//! programs that include `events.h` take the place of the functions that uprobes trap.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panicking, and say what they skip"
)]

mod abi;
mod foreign;
mod library;
mod musl;
mod program;
mod sampling;
mod stress;
