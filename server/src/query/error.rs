//! Why a query has no answer, with the code that programs go by.

use std::time::Duration;

use everflame_profile::{DecodeError, DiffError, Kind, MergeError, SelectError, UnknownKind};

use super::{selector::SelectorError, time::TimeError};
use crate::store::StoreError;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The selector cannot be read.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// A time cannot be read.
    #[error(transparent)]
    Time(#[from] TimeError),
    /// No such kind.
    #[error(transparent)]
    Kind(#[from] UnknownKind),
    /// No such sample type.
    #[error(transparent)]
    SampleType(#[from] SelectError),
    /// The two sides cannot be compared.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// The two sides are of different kinds.
    #[error("cannot compare a {base} profile with a {compare} profile")]
    DifferentKinds {
        /// Of the base.
        base: Kind,
        /// Of the other side.
        compare: Kind,
    },
    /// A parameter is missing or has a wrong value.
    #[error("{message}")]
    Parameter {
        /// Which, and what it should be.
        message: String,
    },
    /// The range ends before it begins.
    #[error("the time range ends before it begins")]
    EmptyRange,
    /// Nothing matches.
    #[error("no {kind} profiles match the selector in this time range")]
    NoData {
        /// What was asked for.
        kind: Kind,
    },
    /// Too expensive.
    #[error(
        "more than {limit} profiles match; narrow the selector or the time range \
         (the limit is --max-query-profiles)"
    )]
    TooManyProfiles {
        /// How many are allowed.
        limit: u64,
    },
    /// Too expensive.
    #[error(
        "the sum of the profiles takes more than {limit_bytes} bytes of memory; narrow the \
         selector or the time range (the limit is --max-query-bytes)"
    )]
    TooLarge {
        /// How many are allowed.
        limit_bytes: usize,
    },
    /// Too expensive.
    #[error(
        "more than {limit} series or label values match; narrow the selector or the time range \
         (the limit is --max-query-series)"
    )]
    TooManySeries {
        /// How many are allowed.
        limit: usize,
    },
    /// Nothing was ever seen of it.
    #[error(
        "no deploys of service `{service}` are known{} `everflame deploys` lists all",
        did_you_mean(alike)
    )]
    UnknownService {
        /// What was asked for.
        service: String,
        /// What is like it.
        alike: Vec<String>,
    },
    /// Nothing was ever seen of it.
    #[error(
        "service `{service}` has no version `{version}`{} `everflame deploys --service {service}` lists all",
        did_you_mean(alike)
    )]
    UnknownVersion {
        /// Of which service.
        service: String,
        /// What was asked for.
        version: String,
        /// What is like it.
        alike: Vec<String>,
    },
    /// There is but one version.
    #[error(
        "service `{service}` has had no deploy: only version `{version}` has been seen; compare two times of it \
         with ranges"
    )]
    NoDeploy {
        /// Of which service.
        service: String,
        /// The one that there is.
        version: String,
    },
    /// A version is to be compared with itself.
    #[error("both sides are version `{version}`; compare two times of it with ranges")]
    SameVersion {
        /// Which one.
        version: String,
    },
    /// Two times have time in common.
    #[error("the two ranges overlap: what is in both cannot differ; choose ranges that do not")]
    OverlappingRanges,
    /// There is no room for another one.
    #[error("deploys of {limit} services are remembered already; no more are")]
    TooManyServices {
        /// How many there may be.
        limit: usize,
    },
    /// Took too long.
    #[error("the query took longer than {after:?}; narrow the selector or the time range")]
    Timeout {
        /// How long is allowed.
        after: Duration,
    },
    /// Too many others.
    #[error("{max_concurrent} queries are running and this one waited too long; try again")]
    Overloaded {
        /// How many may run.
        max_concurrent: usize,
    },
    /// A stored profile cannot be read.
    #[error("a stored profile is damaged")]
    Damaged {
        /// How.
        #[source]
        source: DecodeError,
    },
    /// Stored profiles do not add up.
    #[error("stored profiles cannot be merged")]
    Merge(#[from] MergeError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A bug.
    #[error("the query crashed")]
    Crashed {
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

fn did_you_mean(alike: &[String]) -> String {
    match alike {
        [] => ";".to_owned(),
        [only] => format!("; did you mean {only}?"),
        [others @ .., last] => format!("; did you mean {} or {last}?", others.join(", ")),
    }
}

/// Whose fault it is, in the terms that HTTP and gRPC share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The question is wrong.
    Question,
    /// There is nothing to be found.
    Nothing,
    /// The question is too expensive.
    Cost,
    /// Not now.
    Busy,
    /// Not the asker's.
    Server,
}

impl QueryError {
    /// A short name that stays the same.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Selector(_) => "bad_selector",
            Self::Time(_) | Self::EmptyRange => "bad_time",
            Self::Kind(_) => "unknown_kind",
            Self::SampleType(_) => "unknown_sample_type",
            Self::Diff(_)
            | Self::DifferentKinds { .. }
            | Self::SameVersion { .. }
            | Self::OverlappingRanges => "not_comparable",
            Self::UnknownService { .. } => "unknown_service",
            Self::UnknownVersion { .. } => "unknown_version",
            Self::NoDeploy { .. } => "no_deploy",
            Self::Parameter { .. } => "bad_parameter",
            Self::NoData { .. } => "no_data",
            Self::TooManyProfiles { .. } | Self::TooLarge { .. } | Self::TooManySeries { .. } => {
                "too_expensive"
            }
            Self::TooManyServices { .. } => "too_many_services",
            Self::Timeout { .. } => "timeout",
            Self::Overloaded { .. } => "overloaded",
            Self::Store(StoreError::Suspended { .. }) => "store_suspended",
            Self::Damaged { .. } | Self::Merge(_) | Self::Store(_) => "store_failed",
            Self::Crashed { .. } => "internal",
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Selector(_)
            | Self::Time(_)
            | Self::EmptyRange
            | Self::Kind(_)
            | Self::SampleType(_)
            | Self::Diff(_)
            | Self::DifferentKinds { .. }
            | Self::SameVersion { .. }
            | Self::OverlappingRanges
            | Self::Parameter { .. } => Fault::Question,
            Self::NoData { .. }
            | Self::UnknownService { .. }
            | Self::UnknownVersion { .. }
            | Self::NoDeploy { .. } => Fault::Nothing,
            Self::TooManyProfiles { .. }
            | Self::TooLarge { .. }
            | Self::TooManySeries { .. }
            | Self::TooManyServices { .. }
            | Self::Timeout { .. } => Fault::Cost,
            Self::Overloaded { .. } | Self::Store(StoreError::Suspended { .. }) => Fault::Busy,
            Self::Damaged { .. } | Self::Merge(_) | Self::Store(_) | Self::Crashed { .. } => {
                Fault::Server
            }
        }
    }

    /// The column in the selector, counted from 1, when it is the selector that is wrong.
    pub fn position(&self) -> Option<usize> {
        match self {
            Self::Selector(err) => Some(err.column),
            _ => None,
        }
    }
}
