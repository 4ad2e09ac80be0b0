//! From a question to an answer: selectors, time ranges, merging and its limits.

pub mod comparison;
pub mod engine;
pub mod error;
pub mod grpc;
pub mod selector;
pub mod time;
