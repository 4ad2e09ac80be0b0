//! Functions by what they cost: themselves, and with what they call.

use everflame_proto::pprof::Profile;
use serde::Serialize;

use crate::frames::Frames;
use crate::select::sample_types;

/// The functions of a profile, the most expensive one first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TopTable {
    /// What the values are, such as "cpu".
    pub sample_type: String,
    /// And in what, such as "nanoseconds".
    pub unit: String,
    /// The sum over all samples: 100 %.
    pub total_value: i64,
    /// Sorted by self value, then total value (both falling), then name and file.
    pub functions: Vec<FunctionTotals>,
}

/// What one function costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionTotals {
    /// Its name, or `[mapping]` where there is no symbol.
    pub name: String,
    /// Its source file, or the file of the mapping where there is no symbol.
    pub filename: String,
    /// Of samples in which it was at the leaf.
    pub self_value: i64,
    /// Of samples in which it was anywhere in the stack; recursion counts once.
    pub total_value: i64,
}

/// Sums the values at `index` of each sample (see [`crate::sample_type_index`]) by
/// function. An index that the profile does not have gives an empty table.
pub fn top(profile: &Profile, index: usize) -> TopTable {
    let frames = Frames::new(profile);
    let mut self_values = vec![0_i64; frames.len()];
    let mut total_values = vec![0_i64; frames.len()];
    // The sample in which a frame was seen last: tells recursion from the first time.
    let mut seen_in = vec![0_usize; frames.len()];
    let mut total_value = 0_i64;

    for (number, sample) in (1..).zip(&profile.sample) {
        let value = sample.value.get(index).copied().unwrap_or(0);
        if value == 0 {
            continue;
        }
        total_value = total_value.saturating_add(value);
        let stack = frames.stack(sample).filter_map(|frame| usize::try_from(frame).ok());
        for (depth, frame) in stack.enumerate() {
            if depth == 0 {
                add(&mut self_values, frame, value);
            }
            if let Some(seen) = seen_in.get_mut(frame).filter(|seen| **seen != number) {
                *seen = number;
                add(&mut total_values, frame, value);
            }
        }
    }

    let (sample_type, unit) = sample_types(profile).get(index).copied().unwrap_or_default();
    let mut functions: Vec<FunctionTotals> = frames
        .into_frames()
        .into_iter()
        .zip(self_values.into_iter().zip(total_values))
        .zip(seen_in)
        .filter(|(_, seen_in)| *seen_in != 0)
        .map(|((frame, (self_value, total_value)), _)| FunctionTotals {
            name: frame.name,
            filename: frame.filename,
            self_value,
            total_value,
        })
        .collect();
    functions.sort_by(|a, b| {
        (b.self_value, b.total_value)
            .cmp(&(a.self_value, a.total_value))
            .then_with(|| (&a.name, &a.filename).cmp(&(&b.name, &b.filename)))
    });
    TopTable { sample_type: sample_type.to_owned(), unit: unit.to_owned(), total_value, functions }
}

fn add(sums: &mut [i64], frame: usize, value: i64) {
    if let Some(sum) = sums.get_mut(frame) {
        *sum = sum.saturating_add(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{FunctionInfo, ProfileBuilder};
    use crate::tables::tests::small_profile;

    fn rows(table: &TopTable) -> Vec<(&str, i64, i64)> {
        table.functions.iter().map(|f| (f.name.as_str(), f.self_value, f.total_value)).collect()
    }

    #[test]
    fn self_is_the_leaf_and_total_is_the_stack() {
        let table = top(&small_profile(), 1);
        assert_eq!((table.sample_type.as_str(), table.unit.as_str()), ("cpu", "nanoseconds"));
        assert_eq!(table.total_value, 60);
        assert_eq!(
            rows(&table),
            [
                ("token", 30, 30),
                ("[libc.so.6]", 20, 20),
                ("serve", 10, 40),
                ("main", 0, 60),
                ("parse", 0, 30),
            ]
        );
        assert_eq!(table.functions[1].filename, "/usr/lib/libc.so.6");
    }

    #[test]
    fn recursion_counts_once() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let info = FunctionInfo { name: "visit", ..FunctionInfo::default() };
        let visit = builder.function(info);
        let location = builder.location(None, 1, &[(visit, 1), (visit, 2)]);
        builder.sample(&[location, location, location], &[4], &[]);
        assert_eq!(rows(&top(&builder.finish(), 0)), [("visit", 4, 4)]);
    }

    #[test]
    fn sums_saturate_and_functions_without_value_are_left_out() {
        let mut profile = small_profile();
        profile.sample[0].value = vec![0, i64::MAX];
        profile.sample[1].value = vec![0, i64::MAX];
        profile.sample[2].value = vec![0, 0];
        let table = top(&profile, 1);
        assert_eq!(table.total_value, i64::MAX);
        assert_eq!(rows(&table)[0], ("serve", i64::MAX, i64::MAX));
        assert!(!rows(&table).iter().any(|(name, ..)| name.contains("libc")));
        assert!(top(&profile, 0).functions.is_empty());
        assert_eq!(top(&profile, 9), TopTable::default());
    }

    #[test]
    fn table_serialises_with_the_names_that_others_rely_on() {
        let json = serde_json::to_value(top(&small_profile(), 1)).unwrap();
        assert_eq!(
            json["functions"][2],
            serde_json::json!({
                "name": "serve",
                "filename": "/src/api/main.c",
                "self_value": 10,
                "total_value": 40,
            })
        );
        assert_eq!(json["total_value"], 60);
    }
}
