//! Compares versions of a service: reads the profiles of both sides into sums by host and function, and has
//! `everflame-compare` judge them.
//!
//! [`sides`] says which profiles those are, from which versions ran when; [`sum`] reads them.

pub mod sides;
mod sum;

use std::time::Duration;

use everflame_compare::{ComparedSide, Comparison, Functions, Settings, compare};
use everflame_profile::Kind;

use self::sum::SideSummer;
use super::{
    engine::{Engine, Run},
    error::QueryError,
    selector::Selector,
};
use crate::store::TimeRange;

/// How much of each version's time is compared when nobody says.
pub const DEFAULT_LENGTH: Duration = Duration::from_secs(3_600);

/// How long instances are left out after they have started, when nobody says.
pub const DEFAULT_WARM_UP: Duration = Duration::from_secs(120);

/// What is to be compared.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Of which service.
    pub service: String,
    /// Which profiles.
    pub kind: Kind,
    /// Conditions on labels that both sides have to meet; may be empty.
    pub selector: Selector,
    /// The side that it is compared with.
    pub base: WantedSide,
    /// The other side.
    pub compare: WantedSide,
    /// How long after its start an instance is not like it will be.
    pub warm_up: Duration,
}

/// A side of what is to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedSide {
    /// Which version; all for `None`.
    pub version: Option<String>,
    /// When.
    pub range: TimeRange,
}

impl Engine {
    /// Compares two sides of a service.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub async fn compare(&self, wanted: Wanted) -> Result<Comparison, QueryError> {
        self.run("compare", move |run| compare_sides(run, &wanted)).await
    }
}

fn compare_sides(run: &Run, wanted: &Wanted) -> Result<Comparison, QueryError> {
    let selector = sum::selector_of_kind(run, wanted)?;
    let mut functions = Functions::default();
    let mut read = |side: &WantedSide| -> Result<_, QueryError> {
        let summer = SideSummer::new(run, wanted, &selector, side);
        let (sums, used) = summer.sum(&mut functions)?;
        let used = ComparedSide {
            name: side.version.clone().unwrap_or_default(),
            start_unix_ns: side.range.start_unix_ns,
            end_unix_ns: side.range.end_unix_ns,
            ..used
        };
        Ok((sums, used))
    };
    let (base, base_used) = read(&wanted.base)?;
    let (other, other_used) = read(&wanted.compare)?;
    let unit = wanted
        .kind
        .sample_types()
        .iter()
        .find(|(name, _)| *name == wanted.kind.default_sample_type());
    Ok(Comparison {
        service: wanted.service.clone(),
        kind: wanted.kind.name().to_owned(),
        unit: unit.map_or("", |(_, unit)| unit).to_owned(),
        base: base_used,
        compare: other_used,
        report: compare(&functions, &base, &other, &Settings::default()),
    })
}
