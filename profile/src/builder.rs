//! Builds a profile: every string, function, location and stack is stored once.
//!
//! ```
//! use everflame_profile::{FunctionInfo, ProfileBuilder};
//!
//! let mut builder = ProfileBuilder::new(&[("samples", "count"), ("cpu", "nanoseconds")], "cpu");
//! let main = builder.function(FunctionInfo { name: "main", ..FunctionInfo::default() });
//! let in_main = builder.location(None, 0x1234, &[(main, 7)]);
//! builder.sample(&[in_main], &[1, 10_000_000], &[]);
//! builder.sample(&[in_main], &[2, 20_000_000], &[]);
//! assert_eq!(builder.finish().sample[0].value, [3, 30_000_000]);
//! ```

use everflame_proto::pprof::{Function, Label, Line, Mapping, Profile, ValueType};

use crate::tables::{MappingKey, Tables};

/// A mapping of the builder that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingId(u64);

/// A function of the builder that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionId(u64);

/// A location of the builder that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocationId(u64);

/// A file, or a part of one, as mapped into the address space of the profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MappingInfo<'a> {
    /// The first address.
    pub memory_start: u64,
    /// The address after the last one.
    pub memory_limit: u64,
    /// The offset in the file of what is at `memory_start`.
    pub file_offset: u64,
    /// Its path, or a name in brackets such as `[kernel.kallsyms]`.
    pub filename: &'a str,
    /// In lower-case hexadecimal; empty when there is none.
    pub build_id: &'a str,
}

/// A function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FunctionInfo<'a> {
    /// For people: demangled.
    pub name: &'a str,
    /// As in the symbol table.
    pub system_name: &'a str,
    /// Its source file; empty when unknown.
    pub filename: &'a str,
    /// The line where it begins; 0 when unknown.
    pub start_line: i64,
}

/// The value of a sample's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LabelValue<'a> {
    /// Text.
    Str(&'a str),
    /// A number and its unit; the unit may be empty.
    Num(i64, &'a str),
}

/// A profile under construction.
#[derive(Debug)]
pub struct ProfileBuilder {
    tables: Tables,
}

impl ProfileBuilder {
    /// A profile with these (type, unit) pairs of values, and the type that tools show
    /// when nobody asks for another.
    pub fn new(sample_types: &[(&str, &str)], default: &str) -> Self {
        let mut tables = Tables::new();
        for (name, unit) in sample_types {
            let sample_type = ValueType { r#type: tables.string(name), unit: tables.string(unit) };
            tables.profile.sample_type.push(sample_type);
        }
        tables.profile.default_sample_type = tables.string(default);
        Self { tables }
    }

    /// What lies between two samples, such as 52 631 579 nanoseconds of cpu at 19 Hz.
    pub fn set_period(&mut self, name: &str, unit: &str, period: i64) {
        let period_type =
            ValueType { r#type: self.tables.string(name), unit: self.tables.string(unit) };
        self.tables.profile.period_type = Some(period_type);
        self.tables.profile.period = period;
    }

    /// When the profile began, since the Unix epoch, and for how long it was taken.
    pub fn set_time(&mut self, start_unix_ns: i64, duration_ns: i64) {
        self.tables.profile.time_nanos = start_unix_ns;
        self.tables.profile.duration_nanos = duration_ns;
    }

    /// Adds text for people who look at the profile.
    pub fn comment(&mut self, text: &str) {
        let comment = self.tables.string(text);
        self.tables.profile.comment.push(comment);
    }

    /// A mapping. The first one is taken for the main executable.
    pub fn mapping(&mut self, info: MappingInfo<'_>) -> MappingId {
        let (filename, build_id) =
            (self.tables.string(info.filename), self.tables.string(info.build_id));
        let key = MappingKey {
            filename,
            build_id,
            file_offset: info.file_offset,
            range: Some((info.memory_start, info.memory_limit)),
        };
        let mapping = Mapping {
            memory_start: info.memory_start,
            memory_limit: info.memory_limit,
            file_offset: info.file_offset,
            filename,
            build_id,
            ..Mapping::default()
        };
        MappingId(self.tables.mapping(key, mapping))
    }

    /// A function.
    pub fn function(&mut self, info: FunctionInfo<'_>) -> FunctionId {
        let function = Function {
            id: 0,
            name: self.tables.string(info.name),
            system_name: self.tables.string(info.system_name),
            filename: self.tables.string(info.filename),
            start_line: info.start_line,
        };
        FunctionId(self.tables.function(function))
    }

    /// A place in the code: address and (function, line) pairs, the innermost inlined
    /// function first. No lines means that it could not be symbolised; it keeps mapping
    /// and address, so that it can be later.
    pub fn location(
        &mut self,
        mapping: Option<MappingId>,
        address: u64,
        lines: &[(FunctionId, i64)],
    ) -> LocationId {
        let lines = lines
            .iter()
            .map(|(function, line)| Line { function_id: function.0, line: *line, column: 0 })
            .collect();
        let mapping_id = mapping.map_or(0, |mapping| mapping.0);
        LocationId(self.tables.location(mapping_id, address, lines, false))
    }

    /// Counts a stack, leaf first. Values of equal stacks with equal labels (in any order)
    /// add up. Missing values count as 0, surplus ones are ignored.
    pub fn sample(
        &mut self,
        stack: &[LocationId],
        values: &[i64],
        labels: &[(&str, LabelValue<'_>)],
    ) {
        let mut all_values = values.to_vec();
        all_values.resize(self.tables.profile.sample_type.len(), 0);
        let labels = labels.iter().map(|(key, value)| self.label(key, *value)).collect();
        let location_ids: Vec<u64> = stack.iter().map(|location| location.0).collect();
        self.tables.sample(&location_ids, &all_values, labels);
    }

    /// The profile.
    pub fn finish(self) -> Profile {
        self.tables.profile
    }

    fn label(&mut self, key: &str, value: LabelValue<'_>) -> Label {
        let key = self.tables.string(key);
        match value {
            LabelValue::Str(text) => {
                Label { key, str: self.tables.string(text), num: 0, num_unit: 0 }
            }
            LabelValue::Num(num, unit) => {
                Label { key, str: 0, num, num_unit: self.tables.string(unit) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::tests::small_profile;
    use crate::validate::validate;

    #[test]
    fn built_profiles_are_valid_and_store_everything_once() {
        let profile = small_profile();
        assert_eq!(validate(&profile), Ok(()));
        let mut strings = profile.string_table.clone();
        strings.sort_unstable();
        strings.dedup();
        assert_eq!(strings.len(), profile.string_table.len());
        assert_eq!((profile.mapping.len(), profile.function.len()), (2, 4));
        assert_eq!((profile.location.len(), profile.sample.len()), (4, 3));
    }

    #[test]
    fn mapping_flags_say_what_the_lines_have() {
        let profile = small_profile();
        let flags = |position: usize| {
            let m = &profile.mapping[position];
            [m.has_functions, m.has_filenames, m.has_line_numbers, m.has_inline_frames]
        };
        assert_eq!(flags(0), [true; 4]);
        assert_eq!(flags(1), [false; 4]);
    }

    #[test]
    fn symbol_without_source_sets_only_has_functions() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let mapping = builder.mapping(MappingInfo::default());
        let function = builder.function(FunctionInfo { name: "f", ..FunctionInfo::default() });
        builder.location(Some(mapping), 1, &[(function, 0)]);
        let mapping = &builder.finish().mapping[0];
        assert!(mapping.has_functions);
        assert!(!(mapping.has_filenames || mapping.has_line_numbers || mapping.has_inline_frames));
    }

    #[test]
    fn equal_stacks_add_up_whatever_the_order_of_labels() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let stack = [builder.location(None, 1, &[])];
        let (a, b) = (("a", LabelValue::Str("x")), ("b", LabelValue::Num(1, "bytes")));
        builder.sample(&stack, &[i64::MAX], &[a, b]);
        builder.sample(&stack, &[1], &[b, a]);
        builder.sample(&stack, &[5], &[a]);
        builder.sample(&stack, &[], &[]);
        let values: Vec<_> = builder.finish().sample.into_iter().map(|s| s.value).collect();
        assert_eq!(values, [[i64::MAX], [5], [0]]);
    }

    #[test]
    fn locations_differ_by_mapping_address_and_lines() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let mapping = builder.mapping(MappingInfo::default());
        let function = builder.function(FunctionInfo::default());
        let first = builder.location(Some(mapping), 1, &[(function, 2)]);
        assert_eq!(builder.location(Some(mapping), 1, &[(function, 2)]), first);
        for other in [
            builder.location(None, 1, &[(function, 2)]),
            builder.location(Some(mapping), 2, &[(function, 2)]),
            builder.location(Some(mapping), 1, &[(function, 3)]),
            builder.location(Some(mapping), 1, &[]),
        ] {
            assert_ne!(other, first);
        }
    }
}
