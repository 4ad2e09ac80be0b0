//! What a comparison says.

use serde::{Deserialize, Serialize};

use crate::{
    estimate::{Interval, Means},
    latency::LatencyChange,
};

/// What was compared, and what that says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// Of which service; may be empty.
    pub service: String,
    /// The profile kind, such as `cpu`.
    pub kind: String,
    /// What values are in, such as `nanoseconds`.
    pub unit: String,
    /// The side that it is compared with.
    pub base: ComparedSide,
    /// The other side.
    pub compare: ComparedSide,
    /// What it says.
    pub report: Report,
}

/// What was looked at of a side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedSide {
    /// Which version, or files; empty for a range of all versions.
    pub name: String,
    /// From when, in nanoseconds since the Unix epoch; 0 where that is not known.
    pub start_unix_ns: u64,
    /// Until when.
    pub end_unix_ns: u64,
    /// Windows that were left out, as an instance had just started.
    pub warm_up_windows: u64,
    /// Profiles that were read.
    pub profiles: u64,
}

/// What a comparison says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// In a word.
    pub answer: Answer,
    /// What was compared with what.
    pub basis: Basis,
    /// The cost of everything.
    pub whole: Whole,
    /// How long things took, of kinds that say: p50 and p99.
    pub latencies: Vec<LatencyChange>,
    /// Functions that were tested, those that changed first; of several that did, the one that changed most by itself.
    pub functions: Vec<FunctionChange>,
    /// Functions that were seen, but in too few samples, or cost too little, to be tested.
    pub untested: usize,
}

/// A comparison in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Something costs more, and that is no chance.
    Regressed,
    /// Something costs less, and nothing costs more.
    Improved,
    /// Nothing changed by more than could be seen.
    NoChange,
    /// Too few replicates to say.
    NotEnoughData,
}

impl Answer {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Regressed => "regressed",
            Self::Improved => "improved",
            Self::NoChange => "no change",
            Self::NotEnoughData => "not enough data",
        }
    }
}

/// What was compared with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Basis {
    /// What a replicate is.
    pub replicate: Replication,
    /// Whether the same hosts were compared with themselves.
    pub paired: bool,
    /// What costs are divided by.
    pub cost_per: CostPer,
    /// The base.
    pub base: SideBasis,
    /// The other side.
    pub compare: SideBasis,
    /// Replicates that a side must have at least.
    pub needed: usize,
}

/// What was compared of a side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SideBasis {
    /// Replicates; of a paired comparison the pairs.
    pub replicates: usize,
    /// Hosts that were seen.
    pub hosts: usize,
    /// Instances that were seen.
    pub instances: usize,
    /// Seconds in which they ran, summed over replicates.
    pub seconds: f64,
    /// Samples.
    pub samples: f64,
}

/// What a replicate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replication {
    /// A host: everything that differs from host to host is part of the noise.
    Host,
    /// An instance, as there are too few hosts: what differs from host to host may look like a change.
    Instance,
}

/// What costs are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostPer {
    /// Seconds of a replicate: with more load, all costs rise.
    Second,
    /// Requests that it has served.
    Request,
    /// Nothing is known that they could be divided by: only shares are compared.
    Nothing,
}

/// The cost of everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Whole {
    /// Value per second, or per request.
    pub cost: Change,
    /// What it means.
    pub verdict: Verdict,
    /// By how much it could have changed at most, as a share of the base, given what was seen.
    pub changed_at_most: Option<f64>,
}

/// A function on both sides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FunctionChange {
    /// Its name, without what differs from build to build.
    pub name: String,
    /// Its source file, or the file of the mapping where there is no symbol.
    pub filename: String,
    /// By itself.
    pub own: Metric,
    /// With all that it calls.
    pub total: Metric,
}

impl FunctionChange {
    /// Its metrics.
    pub fn metrics(&self) -> [&Metric; 2] {
        [&self.own, &self.total]
    }

    /// The verdict that matters: that of a change, if one of its metrics has one.
    pub fn verdict(&self) -> &Verdict {
        if self.own.verdict.rank() <= self.total.verdict.rank() {
            &self.own.verdict
        } else {
            &self.total.verdict
        }
    }
}

/// What a function costs, as share of everything and per second or request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Metric {
    /// The share of everything that its side did, from 0 to 1.
    pub share: Change,
    /// Value per second, or per request; of shares where there is neither.
    pub cost: Change,
    /// What it means.
    pub verdict: Verdict,
}

/// What a change means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Verdict {
    /// It costs more.
    Regressed,
    /// It costs less.
    Improved,
    /// What costs more here costs as much less there: a function was renamed, inlined or split.
    Shifted {
        /// Where: the function within which nothing has changed as a whole; none at the root of stacks.
        within: Option<String>,
        /// The functions between which it moved.
        among: Vec<String>,
    },
    /// Only its share has changed, as everything else costs more, or less.
    Displaced,
    /// It changed by less than matters.
    Small,
    /// Nothing that could be told from noise.
    Unchanged,
    /// Too little of it was seen.
    Untested,
}

impl Verdict {
    /// Whether somebody should look at it.
    pub fn is_alarm(&self) -> bool {
        matches!(self, Self::Regressed | Self::Improved)
    }

    /// As people write it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Regressed => "regressed",
            Self::Improved => "improved",
            Self::Shifted { .. } => "shifted",
            Self::Displaced => "displaced",
            Self::Small => "small",
            Self::Unchanged => "unchanged",
            Self::Untested => "untested",
        }
    }

    /// What is shown first.
    pub(crate) const fn rank(&self) -> u8 {
        match self {
            Self::Regressed => 0,
            Self::Improved => 1,
            Self::Shifted { .. } => 2,
            Self::Displaced => 3,
            Self::Small => 4,
            Self::Unchanged => 5,
            Self::Untested => 6,
        }
    }
}

/// How something changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// Of the base.
    pub base: f64,
    /// Of the other side.
    pub compare: f64,
    /// What the other side has more.
    pub difference: f64,
    /// Where the difference is believed to be, at 95 %; `None` without enough replicates.
    pub interval: Option<Interval>,
    /// What the other side has for each of the base; `None` when the base has nothing.
    pub ratio: Option<f64>,
    /// Where the ratio is believed to be, at 95 %.
    pub ratio_interval: Option<Interval>,
    /// The probability of as large a difference where there is none.
    pub p: Option<f64>,
    /// The same, adjusted for how many functions were tested.
    pub adjusted_p: Option<f64>,
    /// What tests against other limits need.
    pub means: Option<Means>,
}

impl Change {
    /// Of means that can be tested.
    pub(crate) fn new(means: Means, confidence: f64) -> Self {
        Self {
            base: means.base,
            compare: means.compare,
            difference: means.difference(),
            interval: Some(means.difference_interval(confidence)),
            ratio: means.ratio(),
            ratio_interval: means.ratio_interval(confidence),
            p: Some(means.test(1.0).p),
            adjusted_p: None,
            means: Some(means),
        }
    }

    /// Of what was seen, with too few replicates for a test.
    pub(crate) fn untested(base: f64, compare: f64) -> Self {
        Self {
            base,
            compare,
            difference: compare - base,
            interval: None,
            ratio: (base > 0.0).then(|| compare / base),
            ratio_interval: None,
            p: None,
            adjusted_p: None,
            means: None,
        }
    }
}
