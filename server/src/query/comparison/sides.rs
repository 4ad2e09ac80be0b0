//! Which versions, and which of their time, are compared.
//!
//! A version that is asked for is its last spell. Of a spell the end counts, as what it did lately says most; of the
//! base, where it ran then, the same time of an earlier day.

use crate::{
    deploys::spells::{Extent, Spell, Spells},
    query::{comparison::WantedSide, error::QueryError},
    store::TimeRange,
};

const DAY_NS: u64 = 24 * 3_600 * 1_000_000_000;

/// Baselines are looked for so many days back.
const MAX_DAYS_BACK: u64 = 7;

/// Names that are offered for one that is unknown.
const MAX_OFFERED: usize = 3;

/// Names that are less alike are not offered (Jaro and Winkler's similarity).
const MIN_SIMILARITY: f64 = 0.7;

/// What to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sides {
    /// The newest version with the one before it.
    LastDeploy,
    /// Two versions.
    Versions {
        /// The base.
        base: String,
        /// The other side.
        compare: String,
    },
    /// Two times, whatever version ran.
    Ranges {
        /// The base.
        base: TimeRange,
        /// The other side.
        compare: TimeRange,
    },
}

impl Sides {
    /// Of what somebody has given: two versions, two ranges, or nothing.
    ///
    /// # Errors
    /// [`QueryError::Parameter`] for anything else.
    pub fn of(
        base_version: Option<String>,
        compare_version: Option<String>,
        base_range: Option<TimeRange>,
        compare_range: Option<TimeRange>,
    ) -> Result<Self, QueryError> {
        match (base_version, compare_version, base_range, compare_range) {
            (None, None, None, None) => Ok(Self::LastDeploy),
            (Some(base), Some(compare), None, None) => Ok(Self::Versions { base, compare }),
            (None, None, Some(base), Some(compare)) => Ok(Self::Ranges { base, compare }),
            _ => Err(QueryError::Parameter {
                message: "give two versions, or two ranges, or neither for the last deploy"
                    .to_owned(),
            }),
        }
    }
}

/// Finds the two sides of a service; `length_ns` is how much of each spell is looked at.
///
/// # Errors
/// When a version is unknown, with names that are like it; when there is none to compare with.
pub fn resolve(
    service: &str,
    spells: &Spells,
    sides: &Sides,
    length_ns: u64,
) -> Result<(WantedSide, WantedSide), QueryError> {
    let all = spells.all();
    let (base, compare) = match sides {
        Sides::Ranges { base, compare } => {
            if base.start_unix_ns < compare.end_unix_ns && compare.start_unix_ns < base.end_unix_ns
            {
                return Err(QueryError::OverlappingRanges);
            }
            let side = |range: &TimeRange| WantedSide { version: None, range: *range };
            return Ok((side(base), side(compare)));
        }
        Sides::LastDeploy => {
            let last = (0..all.len()).rev().find_map(|at| Some((spells.before(at)?, &all[at])));
            last.ok_or_else(|| QueryError::NoDeploy {
                service: service.to_owned(),
                version: all.last().map(|spell| spell.version.clone()).unwrap_or_default(),
            })?
        }
        Sides::Versions { base, compare } => {
            if base == compare {
                return Err(QueryError::SameVersion { version: base.clone() });
            }
            let compare = last_spell(service, all, compare, u64::MAX)?;
            (last_spell(service, all, base, compare.extent.last_unix_ns)?, compare)
        }
    };
    let compare_range = end_of(compare.extent, length_ns);
    let base_range =
        same_hours(base.extent, compare_range).unwrap_or_else(|| end_of(base.extent, length_ns));
    let side = |spell: &Spell, range| WantedSide { version: Some(spell.version.clone()), range };
    Ok((side(base, base_range), side(compare, compare_range)))
}

/// The last time that a version ran, and began before an instant if it ever did.
fn last_spell<'a>(
    service: &str,
    all: &'a [Spell],
    version: &str,
    before: u64,
) -> Result<&'a Spell, QueryError> {
    let of_version = || all.iter().filter(|spell| spell.version == version);
    let earlier = of_version().rfind(|spell| spell.extent.first_unix_ns < before);
    earlier.or_else(|| of_version().next_back()).ok_or_else(|| QueryError::UnknownVersion {
        service: service.to_owned(),
        version: version.to_owned(),
        alike: alike(version, all.iter().rev().map(|spell| spell.version.as_str())),
    })
}

fn end_of(extent: Extent, length_ns: u64) -> TimeRange {
    let start = extent.last_unix_ns.saturating_sub(length_ns);
    TimeRange { start_unix_ns: extent.first_unix_ns.max(start), end_unix_ns: extent.last_unix_ns }
}

/// The same time on the latest earlier day on which a version ran all of it.
fn same_hours(extent: Extent, range: TimeRange) -> Option<TimeRange> {
    let back = (1..=MAX_DAYS_BACK).map(|days| TimeRange {
        start_unix_ns: range.start_unix_ns.saturating_sub(days * DAY_NS),
        end_unix_ns: range.end_unix_ns.saturating_sub(days * DAY_NS),
    });
    let mut back = back.filter(|range| {
        extent.first_unix_ns <= range.start_unix_ns && range.end_unix_ns <= extent.last_unix_ns
    });
    back.next()
}

/// Names that are like one, those most like it first; if none is, the first ones.
pub(crate) fn alike<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in known {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut similar: Vec<(f64, &str)> =
        names.iter().map(|known| (strsim::jaro_winkler(name, known), *known)).collect();
    similar.sort_by(|a, b| b.0.total_cmp(&a.0));
    similar.retain(|(similarity, _)| *similarity >= MIN_SIMILARITY);
    let offered: Vec<&str> = if similar.is_empty() {
        names
    } else {
        similar.into_iter().map(|(_, name)| name).collect()
    };
    offered.into_iter().take(MAX_OFFERED).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploys::spells::Seen;

    const HOUR: u64 = 3_600 * 1_000_000_000;

    fn spells(windows: &[(&str, u64, u64)]) -> Spells {
        let mut spells = Spells::default();
        for (version, first, last) in windows {
            let window = Extent { first_unix_ns: first * HOUR, last_unix_ns: last * HOUR };
            spells.see(&Seen { version, host: "a", build_id: "", window });
        }
        spells
    }

    fn versions(base: &str, compare: &str) -> Sides {
        Sides::Versions { base: base.to_owned(), compare: compare.to_owned() }
    }

    /// (version, first hour, last hour) of both sides, of an hour.
    #[track_caller]
    fn check(windows: &[(&str, u64, u64)], sides: &Sides, expected: [(&str, u64, u64); 2]) {
        let (base, compare) = resolve("api", &spells(windows), sides, HOUR).unwrap();
        let row = |side: &WantedSide| {
            let TimeRange { start_unix_ns, end_unix_ns } = side.range;
            (side.version.clone().unwrap_or_default(), start_unix_ns / HOUR, end_unix_ns / HOUR)
        };
        let expected = expected.map(|(version, start, end)| (version.to_owned(), start, end));
        assert_eq!([row(&base), row(&compare)], expected, "{windows:?}");
    }

    #[test]
    fn last_deploy_is_compared_with_the_version_before() {
        check(
            &[("v1", 10, 14), ("v2", 14, 18)],
            &Sides::LastDeploy,
            [("v1", 13, 14), ("v2", 17, 18)],
        );
    }

    #[test]
    fn same_hours_of_an_earlier_day_are_preferred() {
        check(
            &[("v1", 10, 60), ("v2", 60, 66)],
            &Sides::LastDeploy,
            [("v1", 41, 42), ("v2", 65, 66)],
        );
    }

    #[test]
    fn version_that_comes_back_is_compared_as_it_runs_now() {
        let windows = [("v1", 10, 12), ("v2", 12, 15), ("v1", 15, 17)];
        check(&windows, &Sides::LastDeploy, [("v2", 14, 15), ("v1", 16, 17)]);
        check(&windows, &versions("v2", "v1"), [("v2", 14, 15), ("v1", 16, 17)]);
        // Of the base it is the spell before.
        check(&windows, &versions("v1", "v2"), [("v1", 11, 12), ("v2", 14, 15)]);
    }

    #[test]
    fn unknown_version_is_answered_with_names_that_are_alike() {
        let spells = spells(&[("v41", 1, 2), ("v42", 2, 3), ("canary", 3, 4)]);
        let error = resolve("api", &spells, &versions("v41", "v43"), HOUR).unwrap_err();
        assert_eq!(
            error.to_string(),
            "service `api` has no version `v43`; did you mean v42 or v41? `everflame deploys --service api` lists all"
        );
        let error = resolve("api", &spells, &versions("x", "v42"), HOUR).unwrap_err();
        assert!(error.to_string().contains("canary, v42 or v41"), "{error}");
    }

    #[test]
    fn there_must_be_two_different_sides() {
        let one = spells(&[("v1", 1, 2)]);
        let error = resolve("api", &one, &Sides::LastDeploy, HOUR).unwrap_err();
        assert!(matches!(error, QueryError::NoDeploy { .. }), "{error}");
        let error = resolve("api", &one, &versions("v1", "v1"), HOUR).unwrap_err();
        assert!(matches!(error, QueryError::SameVersion { .. }), "{error}");
        let range = |start, end| TimeRange { start_unix_ns: start, end_unix_ns: end };
        let ranges = |base, compare| Sides::Ranges { base, compare };
        let error = resolve("api", &one, &ranges(range(0, 2), range(1, 3)), HOUR).unwrap_err();
        assert!(matches!(error, QueryError::OverlappingRanges), "{error}");
        assert!(resolve("api", &one, &ranges(range(0, 1), range(1, 3)), HOUR).is_ok());
    }
}
