//! The pure part of unwinding: rules, the pages that they are stored in, and one step.
//!
//! A walk asks for the [`Rule`] of an address ([`page`]), takes a step with it ([`step`]),
//! and repeats until a [`Stop`]. The BPF programs do this with a reader over
//! `bpf_probe_read_user`, the agent with a copy of the stack, the tests with slices: what
//! the kernel runs is what is tested.

pub mod page;
mod rule;
mod sign;
mod step;
mod stop;

pub use rule::{FrameRule, Kind, ReturnAddress, Rule, SavedFramePointer};
pub use sign::{PlainSign, Sign, choose, mask_of};
pub use step::{Aarch64, Architecture, Memory, Registers, X86_64, step};
pub use stop::Stop;
