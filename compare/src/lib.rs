//! Whether two versions of a program differ, or just their noise.
//!
//! Two profiles always differ. What a deploy has changed is told from what would have differed anyway by looking at
//! how much the hosts of one side differ among themselves: the replicate is the host, not the sample.
//!
//! The way of a comparison through the modules:
//!
//! - [`profiles`] makes sums by function of profiles;
//! - [`sums`] takes them in, by window ([`names`]: what a function is called in every build);
//! - [`estimate`] tests two means, [`multiple`] many at once, [`latency`] quantiles;
//! - [`judge`] puts replicates side by side (`setup`) and makes a [`report`] of it, with what only moved between functions (`shift`) apart;
//! - [`gate`] checks limits on it.
//!
//! Nothing here does I/O, and nothing but [`profiles`] knows what a stack is.
#![forbid(unsafe_code)]

pub mod estimate;
pub mod gate;
pub mod judge;
pub mod latency;
pub mod multiple;
pub mod names;
pub mod profiles;
pub mod report;
mod setup;
mod shift;
pub mod sums;

pub use self::{
    estimate::Interval,
    gate::{Exceeded, GateResult, Outcome, Rule, RuleError, Scope, check},
    judge::{Settings, compare},
    latency::{Latencies, LatencyChange},
    profiles::{Instance, Summer},
    report::{
        Answer, Basis, Change, ComparedSide, Comparison, CostPer, FunctionChange, Metric,
        Replication, Report, SideBasis, Verdict, Whole,
    },
    sums::{Caller, FunctionId, FunctionSum, Functions, Side, Sum, Window},
};
