//! What differs between two profiles, by function.
//!
//! The two sides may have run for different times under different load, so a function is
//! compared in two ways: by its share of everything its side did (in percentage points),
//! and by its cost per second. Shares say what the program does differently; rates say
//! what it costs.

use std::collections::HashMap;

use everflame_proto::pprof::Profile;
use serde::Serialize;

use crate::frames::basename;
use crate::select::{SelectError, sample_type_index};
use crate::top::{FunctionTotals, TopTable, top};

/// Two profiles side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DiffTable {
    /// What the values are, such as "cpu".
    pub sample_type: String,
    /// And in what, such as "nanoseconds".
    pub unit: String,
    /// The sum over all samples of the side compared with.
    pub base_total: i64,
    /// The sum over all samples of the other side.
    pub compare_total: i64,
    /// Seconds of profile on each side; 0 when the profile does not say.
    pub base_seconds: f64,
    /// See `base_seconds`.
    pub compare_seconds: f64,
    /// Sorted by the change in share of self value, the largest first, up or down.
    pub functions: Vec<FunctionDiff>,
}

/// One function on both sides; 0 where it does not occur.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionDiff {
    /// Its name.
    pub name: String,
    /// Its source file, on the newer side if it occurs there.
    pub filename: String,
    /// Its self value in the base.
    pub base_self: i64,
    /// Its total value in the base.
    pub base_total: i64,
    /// Its self value on the other side.
    pub compare_self: i64,
    /// Its total value on the other side.
    pub compare_total: i64,
}

/// How a value changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Delta {
    /// Its share of the base, from 0 to 1; 0 when the base is empty.
    pub base_share: f64,
    /// Its share of the other side.
    pub compare_share: f64,
    /// The difference of the shares in percentage points.
    pub share_delta_pp: f64,
    /// Value per second of profile; none when the profile does not say how long it is.
    pub base_per_second: Option<f64>,
    /// The same of the other side.
    pub compare_per_second: Option<f64>,
    /// (compare - base) / base of the values per second, or of the values themselves when
    /// a side does not say how long it is; none when the base is 0.
    pub relative_change: Option<f64>,
}

/// Why two profiles cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiffError {
    /// The base does not have the sample type.
    #[error("cannot compare with the base profile")]
    Base {
        /// What it has.
        #[source]
        source: SelectError,
    },
    /// The other side does not have the sample type.
    #[error("cannot compare the second profile")]
    Compare {
        /// What it has.
        #[source]
        source: SelectError,
    },
    /// The sides measure in different units.
    #[error(
        "`{sample_type}` is in {base_unit} in the base and in {compare_unit} in the other profile"
    )]
    Unit {
        /// What was to be compared.
        sample_type: String,
        /// The unit in the base.
        base_unit: String,
        /// The unit on the other side.
        compare_unit: String,
    },
}

/// Compares the values of a sample type; of the second profile's default one if none is
/// named.
pub fn diff(
    base: &Profile,
    compare: &Profile,
    sample_type: Option<&str>,
) -> Result<DiffTable, DiffError> {
    let compare_index =
        sample_type_index(compare, sample_type).map_err(|source| DiffError::Compare { source })?;
    let compare_top = top(compare, compare_index);
    let base_index = sample_type_index(base, Some(&compare_top.sample_type))
        .map_err(|source| DiffError::Base { source })?;
    let base_top = top(base, base_index);
    if base_top.unit != compare_top.unit {
        return Err(DiffError::Unit {
            sample_type: compare_top.sample_type,
            base_unit: base_top.unit,
            compare_unit: compare_top.unit,
        });
    }
    Ok(DiffTable::new((base_top, seconds(base)), (compare_top, seconds(compare))))
}

impl DiffTable {
    /// Puts two tables of the same sample type side by side, each with its seconds of
    /// profile.
    pub fn new(base: (TopTable, f64), compare: (TopTable, f64)) -> Self {
        let ((base, base_seconds), (compare, compare_seconds)) = (base, compare);
        let mut table = Self {
            sample_type: compare.sample_type,
            unit: compare.unit,
            base_total: base.total_value,
            compare_total: compare.total_value,
            base_seconds,
            compare_seconds,
            functions: Vec::with_capacity(compare.functions.len()),
        };
        let mut base_functions: HashMap<(String, String), FunctionTotals, _> =
            HashMap::with_hasher(foldhash::fast::RandomState::default());
        for function in base.functions {
            base_functions.insert(identity(&function), function);
        }
        for function in compare.functions {
            let in_base = base_functions.remove(&identity(&function)).unwrap_or_default();
            table.functions.push(FunctionDiff {
                base_self: in_base.self_value,
                base_total: in_base.total_value,
                compare_self: function.self_value,
                compare_total: function.total_value,
                name: function.name,
                filename: function.filename,
            });
        }
        table.functions.extend(base_functions.into_values().map(|function| FunctionDiff {
            base_self: function.self_value,
            base_total: function.total_value,
            compare_self: 0,
            compare_total: 0,
            name: function.name,
            filename: function.filename,
        }));
        table.sort();
        table
    }

    /// How a function's own cost changed.
    pub fn self_delta(&self, function: &FunctionDiff) -> Delta {
        self.delta(function.base_self, function.compare_self)
    }

    /// How the cost of a function with all that it calls changed.
    pub fn total_delta(&self, function: &FunctionDiff) -> Delta {
        self.delta(function.base_total, function.compare_total)
    }

    /// How the cost of everything changed.
    pub fn overall_delta(&self) -> Delta {
        self.delta(self.base_total, self.compare_total)
    }

    fn delta(&self, base: i64, compare: i64) -> Delta {
        let base_share = share(base, self.base_total);
        let compare_share = share(compare, self.compare_total);
        let base_per_second = per_second(base, self.base_seconds);
        let compare_per_second = per_second(compare, self.compare_seconds);
        let (from, to) = match (base_per_second, compare_per_second) {
            (Some(from), Some(to)) => (from, to),
            _ => (base as f64, compare as f64),
        };
        Delta {
            base_share,
            compare_share,
            share_delta_pp: (compare_share - base_share) * 100.0,
            base_per_second,
            compare_per_second,
            relative_change: (from != 0.0).then(|| (to - from) / from),
        }
    }

    fn sort(&mut self) {
        let functions = std::mem::take(&mut self.functions);
        let mut keyed: Vec<(f64, f64, FunctionDiff)> = functions
            .into_iter()
            .map(|function| {
                let own = self.self_delta(&function).share_delta_pp.abs();
                (own, self.total_delta(&function).share_delta_pp.abs(), function)
            })
            .collect();
        keyed.sort_by(|a, b| {
            (b.0.total_cmp(&a.0))
                .then(b.1.total_cmp(&a.1))
                .then_with(|| (&a.2.name, &a.2.filename).cmp(&(&b.2.name, &b.2.filename)))
        });
        self.functions = keyed.into_iter().map(|(_, _, function)| function).collect();
    }
}

/// The seconds of profile that went into it, as far as it says.
pub fn seconds(profile: &Profile) -> f64 {
    profile.duration_nanos.max(0) as f64 / 1e9
}

/// What makes a function the same on both sides; see [`crate::frames`].
fn identity(function: &FunctionTotals) -> (String, String) {
    (function.name.clone(), basename(&function.filename).to_owned())
}

fn share(value: i64, total: i64) -> f64 {
    if total == 0 { 0.0 } else { value as f64 / total as f64 }
}

fn per_second(value: i64, seconds: f64) -> Option<f64> {
    (seconds > 0.0).then(|| value as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{FunctionInfo, ProfileBuilder};

    /// A flat profile of (function, cpu seconds).
    fn flat(duration_s: i64, functions: &[(&str, i64)]) -> Profile {
        let mut builder = ProfileBuilder::new(&[("cpu", "nanoseconds")], "cpu");
        builder.set_time(1, duration_s * 1_000_000_000);
        for (name, cpu_s) in functions {
            let info = FunctionInfo { name, filename: "/src/a.c", ..FunctionInfo::default() };
            let function = builder.function(info);
            let location = builder.location(None, 0, &[(function, 1)]);
            builder.sample(&[location], &[cpu_s * 1_000_000_000], &[]);
        }
        builder.finish()
    }

    #[test]
    fn functions_sort_by_change_in_share() {
        let base = flat(10, &[("same", 4), ("gone", 2), ("grew", 2)]);
        let compare = flat(20, &[("same", 8), ("new", 2), ("grew", 6)]);
        let table = diff(&base, &compare, None).unwrap();
        let rows: Vec<_> = table
            .functions
            .iter()
            .map(|f| (f.name.as_str(), table.self_delta(f).share_delta_pp))
            .collect();
        assert_eq!(rows, [("gone", -25.0), ("grew", 12.5), ("new", 12.5), ("same", 0.0)]);
        assert_eq!((table.base_seconds, table.compare_seconds), (10.0, 20.0));
    }

    #[test]
    fn rates_compare_profiles_of_different_length() {
        let table = diff(&flat(10, &[("f", 5)]), &flat(20, &[("f", 20)]), Some("cpu")).unwrap();
        let delta = table.self_delta(&table.functions[0]);
        assert_eq!(delta.base_per_second, Some(5e8));
        assert_eq!(delta.compare_per_second, Some(1e9));
        assert_eq!(delta.relative_change, Some(1.0));
        assert_eq!(delta.share_delta_pp, 0.0);
        assert_eq!(table.overall_delta().relative_change, Some(1.0));
    }

    #[test]
    fn without_duration_values_are_compared_as_they_are() {
        let table = diff(&flat(0, &[("f", 4)]), &flat(10, &[("f", 5)]), None).unwrap();
        let delta = table.self_delta(&table.functions[0]);
        assert_eq!((delta.base_per_second, delta.relative_change), (None, Some(0.25)));
    }

    #[test]
    fn empty_sides_have_no_shares_and_no_relative_change() {
        let table = diff(&flat(1, &[]), &flat(1, &[("f", 1)]), None).unwrap();
        let delta = table.self_delta(&table.functions[0]);
        assert_eq!((delta.base_share, delta.compare_share), (0.0, 1.0));
        assert_eq!(delta.relative_change, None);
        assert!(diff(&flat(1, &[]), &flat(1, &[]), None).unwrap().functions.is_empty());
    }

    #[test]
    fn profiles_of_different_things_are_not_compared() {
        let cpu = flat(1, &[]);
        let wall = ProfileBuilder::new(&[("wall", "nanoseconds")], "wall").finish();
        let micros = ProfileBuilder::new(&[("cpu", "microseconds")], "cpu").finish();
        assert!(matches!(diff(&cpu, &wall, None), Err(DiffError::Base { .. })));
        assert!(matches!(diff(&cpu, &wall, Some("cpu")), Err(DiffError::Compare { .. })));
        assert_eq!(
            diff(&cpu, &micros, None).unwrap_err().to_string(),
            "`cpu` is in nanoseconds in the base and in microseconds in the other profile"
        );
    }
}
