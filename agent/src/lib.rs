//! The everflame agent.
pub mod collect;
pub mod object;
pub mod process;
