//! The collector: takes batches of profiles from agents, makes them durable, and
//! answers questions about them.
//!
//! ```text
//! Push -> ingest (validate, queue, group commit) -> store
//!                       |                             |
//!                    deploys (which version is new)   |
//!                       |                             |
//! gRPC and HTTP <- query (selector, engine) <---------+
//! ```
//!
//! Invariant: what was acknowledged is durable and counted once, whatever happens
//! to this process.
#![forbid(unsafe_code)]

mod api;
mod causes;
pub mod config;
pub mod deploys;
pub mod ingest;
mod metrics;
mod process;
pub mod query;
mod self_profile;
pub mod serve;
mod stopping;
pub mod store;
