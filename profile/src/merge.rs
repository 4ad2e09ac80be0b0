//! Sums profiles into one.
//!
//! Two frames are the same when they have the same lines at the same place of the same
//! file: files are identified by build id, or by name where there is none, and places by
//! their offset in the file, so profiles of different processes and hosts meet although
//! the loader put the file elsewhere. Memory without a file (JIT code, anonymous
//! mappings) has no offsets, so there the address itself counts.
//!
//! A profile that is refused leaves the sum as it was.

use everflame_proto::pprof::{Function, Label, Line, Mapping, Profile, ValueType};

use crate::ids::IdIndex;
use crate::select::{sample_types, string};
use crate::tables::{MappingKey, Tables};
use crate::validate::{ValidateError, validate};

/// Why a profile cannot be added to the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// It measures something else.
    #[error("cannot merge a profile of {} into one of {}", list(given), list(expected))]
    SampleTypes {
        /// The sample types of what was merged before, as (type, unit).
        expected: Vec<(String, String)>,
        /// Those of the profile that was refused.
        given: Vec<(String, String)>,
    },
    /// It contradicts itself.
    #[error("cannot merge a profile that is not valid")]
    Invalid {
        /// Where.
        #[from]
        source: ValidateError,
    },
}

/// The sum of the profiles added so far.
#[derive(Debug)]
pub struct Merger {
    tables: Tables,
    /// What the first profile measures.
    sample_types: Option<Vec<(String, String)>>,
}

impl Default for Merger {
    fn default() -> Self {
        Self::new()
    }
}

impl Merger {
    /// The sum of nothing.
    pub fn new() -> Self {
        Self { tables: Tables::new(), sample_types: None }
    }

    /// Adds a profile. All profiles must have the same sample types.
    ///
    /// The sum begins with the earliest one; its duration is the sum of all durations,
    /// so that values divided by it are rates per second of profile.
    pub fn add(&mut self, profile: &Profile) -> Result<(), MergeError> {
        self.add_with_labels(profile, &[])
    }

    /// Adds a profile and gives each of its samples these labels (name, value) as well.
    pub fn add_with_labels(
        &mut self,
        profile: &Profile,
        labels: &[(String, String)],
    ) -> Result<(), MergeError> {
        validate(profile)?;
        self.check_sample_types(profile)?;
        self.add_header(profile);
        let labels: Vec<Label> = labels
            .iter()
            .map(|(key, value)| Label {
                key: self.tables.string(key),
                str: self.tables.string(value),
                num: 0,
                num_unit: 0,
            })
            .collect();
        Translation::new(&mut self.tables, profile).samples(&labels);
        Ok(())
    }

    /// About how much memory the sum takes so far, for whoever merges what others chose.
    pub fn bytes(&self) -> usize {
        self.tables.bytes()
    }

    /// The sum. Without any profile it has no sample types and is not valid.
    pub fn finish(self) -> Profile {
        self.tables.profile
    }

    fn check_sample_types(&mut self, profile: &Profile) -> Result<(), MergeError> {
        let given: Vec<(String, String)> = sample_types(profile)
            .into_iter()
            .map(|(name, unit)| (name.to_owned(), unit.to_owned()))
            .collect();
        match &self.sample_types {
            Some(expected) if *expected != given => {
                Err(MergeError::SampleTypes { expected: expected.clone(), given })
            }
            Some(_) => Ok(()),
            None => {
                for (name, unit) in &given {
                    let sample_type = ValueType {
                        r#type: self.tables.string(name),
                        unit: self.tables.string(unit),
                    };
                    self.tables.profile.sample_type.push(sample_type);
                }
                self.sample_types = Some(given);
                Ok(())
            }
        }
    }

    fn add_header(&mut self, profile: &Profile) {
        for comment in &profile.comment {
            let comment = self.tables.string(string(profile, *comment));
            if !self.tables.profile.comment.contains(&comment) {
                self.tables.profile.comment.push(comment);
            }
        }
        let period_type = profile.period_type.as_ref().map(|period_type| ValueType {
            r#type: self.tables.string(string(profile, period_type.r#type)),
            unit: self.tables.string(string(profile, period_type.unit)),
        });
        let default = self.tables.string(string(profile, profile.default_sample_type));
        let doc_url = self.tables.string(string(profile, profile.doc_url));

        let sum = &mut self.tables.profile;
        sum.duration_nanos = sum.duration_nanos.saturating_add(profile.duration_nanos);
        if profile.time_nanos != 0 && (sum.time_nanos == 0 || profile.time_nanos < sum.time_nanos) {
            sum.time_nanos = profile.time_nanos;
        }
        // Rates may differ; the coarsest one is the resolution of the sum.
        sum.period = sum.period.max(profile.period);
        sum.period_type = sum.period_type.or(period_type);
        if sum.default_sample_type == 0 {
            sum.default_sample_type = default;
        }
        if sum.doc_url == 0 {
            sum.doc_url = doc_url;
        }
    }
}

fn list(sample_types: &[(String, String)]) -> String {
    let names: Vec<String> =
        sample_types.iter().map(|(name, unit)| format!("{name}/{unit}")).collect();
    names.join(", ")
}

/// What the strings, mappings, functions and locations of one profile are in the sum.
struct Translation<'a> {
    tables: &'a mut Tables,
    profile: &'a Profile,
    strings: Vec<i64>,
    location_index: IdIndex,
    location_ids: Vec<u64>,
}

impl<'a> Translation<'a> {
    fn new(tables: &'a mut Tables, profile: &'a Profile) -> Self {
        let strings = profile.string_table.iter().map(|text| tables.string(text)).collect();
        let mut translation = Self {
            tables,
            profile,
            strings,
            location_index: IdIndex::new(profile.location.iter().map(|location| location.id)),
            location_ids: Vec::new(),
        };
        let functions = translation.functions();
        let mappings = translation.mappings();
        translation.location_ids = translation.locations(&functions, &mappings);
        translation
    }

    fn functions(&mut self) -> Vec<u64> {
        let profile = self.profile;
        let translate = |function: &Function| {
            let function = Function {
                id: 0,
                name: self.string(function.name),
                system_name: self.string(function.system_name),
                filename: self.string(function.filename),
                start_line: function.start_line,
            };
            self.tables.function(function)
        };
        profile.function.iter().map(translate).collect()
    }

    /// For each mapping its id, and what to add to its addresses.
    fn mappings(&mut self) -> Vec<(u64, u64)> {
        let profile = self.profile;
        profile.mapping.iter().map(|mapping| self.mapping(mapping)).collect()
    }

    fn mapping(&mut self, mapping: &Mapping) -> (u64, u64) {
        let (filename, build_id) = (self.string(mapping.filename), self.string(mapping.build_id));
        let is_file = build_id != 0 || is_path(string(self.profile, mapping.filename));
        let key = MappingKey {
            filename: if build_id == 0 { filename } else { 0 },
            build_id,
            file_offset: mapping.file_offset,
            range: (!is_file).then_some((mapping.memory_start, mapping.memory_limit)),
        };
        let translated = Mapping { filename, build_id, ..*mapping };
        let id = self.tables.mapping(key, translated);
        let Some(merged) = self.tables.mapping_mut(id) else { return (id, 0) };
        let shift = merged.memory_start.wrapping_sub(mapping.memory_start);
        merged.memory_limit = merged.memory_limit.max(mapping.memory_limit.wrapping_add(shift));
        merged.has_functions |= mapping.has_functions;
        merged.has_filenames |= mapping.has_filenames;
        merged.has_line_numbers |= mapping.has_line_numbers;
        merged.has_inline_frames |= mapping.has_inline_frames;
        (id, shift)
    }

    fn locations(&mut self, functions: &[u64], mappings: &[(u64, u64)]) -> Vec<u64> {
        let profile = self.profile;
        let mapping_index = IdIndex::new(profile.mapping.iter().map(|mapping| mapping.id));
        let function_index = IdIndex::new(profile.function.iter().map(|function| function.id));
        let function_id =
            |id| function_index.get(id).and_then(|i| functions.get(i)).copied().unwrap_or(0);
        let mut ids = Vec::with_capacity(profile.location.len());
        for location in &profile.location {
            let (mapping_id, shift) = mapping_index
                .get(location.mapping_id)
                .and_then(|index| mappings.get(index))
                .copied()
                .unwrap_or((0, 0));
            let lines = location
                .line
                .iter()
                .map(|line| Line { function_id: function_id(line.function_id), ..*line })
                .collect();
            let address = location.address.wrapping_add(shift);
            ids.push(self.tables.location(mapping_id, address, lines, location.is_folded));
        }
        ids
    }

    fn samples(self, more_labels: &[Label]) {
        let mut stack = Vec::new();
        for sample in &self.profile.sample {
            stack.clear();
            stack.extend(sample.location_id.iter().filter_map(|id| {
                self.location_index.get(*id).and_then(|index| self.location_ids.get(index))
            }));
            let translate = |label: &Label| Label {
                key: self.string(label.key),
                str: self.string(label.str),
                num: label.num,
                num_unit: self.string(label.num_unit),
            };
            let labels =
                sample.label.iter().map(translate).chain(more_labels.iter().copied()).collect();
            self.tables.sample(&stack, &sample.value, labels);
        }
    }

    fn string(&self, index: i64) -> i64 {
        usize::try_from(index).ok().and_then(|index| self.strings.get(index)).copied().unwrap_or(0)
    }
}

/// Whether a mapping's name is that of a file rather than `[heap]` or `//anon`.
fn is_path(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('[') && !name.starts_with("//")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{MappingInfo, ProfileBuilder};
    use crate::tables::tests::small_profile;
    use crate::top::top;

    fn merged(profiles: &[&Profile]) -> Profile {
        let mut merger = Merger::new();
        for profile in profiles {
            merger.add(profile).unwrap();
        }
        merger.finish()
    }

    /// One sample at offset 0x100 of a file that the loader put at `start`.
    fn at(start: u64, filename: &str, build_id: &str) -> Profile {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "samples");
        let mapping = builder.mapping(MappingInfo {
            memory_start: start,
            memory_limit: start + 0x1000,
            file_offset: 0,
            filename,
            build_id,
        });
        let location = builder.location(Some(mapping), start + 0x100, &[]);
        builder.sample(&[location], &[1], &[]);
        builder.finish()
    }

    #[test]
    fn merging_with_nothing_changes_nothing() {
        assert_eq!(merged(&[&small_profile()]).sample, small_profile().sample);
        assert_eq!(merged(&[&small_profile()]).location, small_profile().location);
        assert_eq!(validate(&merged(&[&small_profile()])), Ok(()));
    }

    #[test]
    fn values_and_durations_add_up_and_the_earliest_time_stays() {
        let mut later = small_profile();
        later.time_nanos += 5;
        let sum = merged(&[&later, &small_profile()]);
        assert_eq!(sum.time_nanos, small_profile().time_nanos);
        assert_eq!(sum.duration_nanos, 4_000_000_000);
        assert_eq!(sum.location.len(), small_profile().location.len());
        let values: Vec<_> = sum.sample.iter().map(|sample| sample.value.clone()).collect();
        assert_eq!(values, [[6, 60], [2, 20], [4, 40]]);
        assert_eq!(sum.period, 10);
    }

    #[test]
    fn sums_saturate() {
        let mut huge = small_profile();
        huge.duration_nanos = i64::MAX;
        huge.sample.iter_mut().for_each(|sample| sample.value = vec![i64::MAX, i64::MIN]);
        let sum = merged(&[&huge, &huge]);
        assert_eq!(sum.duration_nanos, i64::MAX);
        assert_eq!(sum.sample[0].value, [i64::MAX, i64::MIN]);
    }

    #[test]
    fn same_file_meets_wherever_the_loader_put_it() {
        let sum = merged(&[&at(0x40_0000, "/a", "id"), &at(0x7f00_0000, "/b", "id")]);
        assert_eq!((sum.mapping.len(), sum.sample.len()), (1, 1));
        assert_eq!(sum.location[0].address, 0x40_0100);
        let sum = merged(&[&at(0x40_0000, "/a", ""), &at(0x10_0000, "/a", "")]);
        assert_eq!((sum.mapping.len(), sum.sample.len()), (1, 1));
    }

    #[test]
    fn different_builds_and_anonymous_memory_stay_apart() {
        let cases = [
            (at(0x1000, "/a", "id1"), at(0x1000, "/a", "id2")),
            (at(0x1000, "//anon", ""), at(0x2000, "//anon", "")),
            (at(0x1000, "[heap]", ""), at(0x2000, "[heap]", "")),
            (at(0x1000, "", ""), at(0x2000, "", "")),
        ];
        for (one, other) in cases {
            let sum = merged(&[&one, &other]);
            assert_eq!((sum.mapping.len(), sum.sample.len()), (2, 2));
        }
    }

    #[test]
    fn other_sample_types_are_refused_and_change_nothing() {
        let mut merger = Merger::new();
        merger.add(&small_profile()).unwrap();
        let error = merger.add(&at(0, "/a", "")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot merge a profile of samples/count into one of samples/count, cpu/nanoseconds"
        );
        let mut broken = small_profile();
        broken.sample[2].location_id = vec![99];
        assert!(matches!(merger.add(&broken), Err(MergeError::Invalid { .. })));
        assert_eq!(top(&merger.finish(), 1).total_value, 60);
    }

    #[test]
    fn bytes_grow_with_what_is_new_only() {
        let mut merger = Merger::new();
        merger.add(&small_profile()).unwrap();
        let once = merger.bytes();
        merger.add(&small_profile()).unwrap();
        assert_eq!(merger.bytes(), once);
        merger.add_with_labels(&small_profile(), &[("pid".into(), "1".into())]).unwrap();
        assert!(merger.bytes() > once + 3 * size_of::<everflame_proto::pprof::Sample>());
    }

    #[test]
    fn added_labels_keep_processes_apart() {
        let mut merger = Merger::new();
        for pid in ["1", "2", "2"] {
            let labels = [("pid".to_owned(), pid.to_owned())];
            merger.add_with_labels(&at(0, "/a", "id"), &labels).unwrap();
        }
        let sum = merger.finish();
        assert_eq!(validate(&sum), Ok(()));
        let values: Vec<_> = sum.sample.iter().map(|sample| sample.value[0]).collect();
        assert_eq!(values, [1, 2]);
    }
}
