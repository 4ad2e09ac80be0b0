//! Journeys through the real programs on the real kernel, with workloads whose answer is
//! known.
//!
//! The machine is shared by all tests, and some compare shares of CPU time, so they take
//! turns.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]
#![forbid(unsafe_code)]

mod agent;
mod alloc;
mod block;
mod deploys;
mod failures;
mod locks;
mod memory;
mod offcpu;
mod record;
mod symbols;
mod tcp;
mod unwind;

use std::io::Write as _;
use std::sync::{Mutex, MutexGuard};

/// Lets one test use the CPUs. `None` where BPF is not permitted: the test is skipped.
fn take_turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed has left nothing behind that the next could trip over.
    let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    everflame_tests::bpf_is_permitted().then_some(turn)
}

/// Prints past the test harness, which hides what tests that pass have printed.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
