//! The everflame agent.
pub mod object;
