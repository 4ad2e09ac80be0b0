//! Whether a decoded profile makes sense.
//!
//! What passes can be merged, counted and shown by any pprof tool: every reference leads
//! somewhere. References that pprof allows to lead nowhere may: location to mapping 0 and
//! line to function 0 mean "not known".

use everflame_proto::pprof::{Label, Profile, ValueType};

use crate::ids::IdIndex;

/// The most frames that all stacks of a profile may have together, inlined ones counted.
/// A hostile profile of a megabyte can otherwise describe billions, by giving one
/// location thousands of lines and repeating it thousands of times.
const MAX_FRAMES: usize = 1 << 26;

/// What is wrong with a profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidateError {
    /// Nothing says what the values mean.
    #[error("it has no sample types")]
    NoSampleTypes,
    /// Index 0 must be the empty string, since that is what unset fields refer to.
    #[error("its string table does not begin with an empty string")]
    StringTable,
    /// A string index leads out of the string table.
    #[error("{owner} refers to string {index}, but there are {len} strings")]
    StringIndex {
        /// What has the index.
        owner: Owner,
        /// The index.
        index: i64,
        /// The size of the string table.
        len: usize,
    },
    /// An id is used twice, or is 0.
    #[error("{owner} has id {id}, which is 0 or taken by another one")]
    Id {
        /// What has the id.
        owner: Owner,
        /// The id.
        id: u64,
    },
    /// A reference to nothing.
    #[error("{owner} refers to {target} {id}, which does not exist")]
    Dangling {
        /// What refers.
        owner: Owner,
        /// To what: "mapping", "location" or "function".
        target: &'static str,
        /// By which id.
        id: u64,
    },
    /// A sample whose values are not one per sample type.
    #[error("{owner} has {values} values for {sample_types} sample types")]
    ValueCount {
        /// The sample.
        owner: Owner,
        /// How many it has.
        values: usize,
        /// How many it should have.
        sample_types: usize,
    },
    /// A mapping that ends before it begins.
    #[error("{owner} ends at {memory_limit:#x}, before its start at {memory_start:#x}")]
    MappingRange {
        /// The mapping.
        owner: Owner,
        /// Its first address.
        memory_start: u64,
        /// The address after its last one.
        memory_limit: u64,
    },
    /// Stacks that are too long to be real, taken together.
    #[error("its stacks have more than {limit} frames")]
    TooManyFrames {
        /// What is allowed.
        limit: usize,
    },
}

/// The part of a profile that an error is about: what it is, and its position in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// "sample", "location" and so on.
    pub what: &'static str,
    /// From 0.
    pub position: usize,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} #{}", self.what, self.position)
    }
}

/// Checks that ids exist and are unique, string indices are in range, samples have a value
/// per sample type, and mappings do not end before they begin.
pub fn validate(profile: &Profile) -> Result<(), ValidateError> {
    if profile.sample_type.is_empty() {
        return Err(ValidateError::NoSampleTypes);
    }
    if profile.string_table.first().is_none_or(|first| !first.is_empty()) {
        return Err(ValidateError::StringTable);
    }
    let checker = Checker {
        strings: profile.string_table.len(),
        mappings: IdIndex::new(profile.mapping.iter().map(|mapping| mapping.id)),
        locations: IdIndex::new(profile.location.iter().map(|location| location.id)),
        functions: IdIndex::new(profile.function.iter().map(|function| function.id)),
    };
    checker.header(profile)?;
    checker.mappings(profile)?;
    checker.functions(profile)?;
    checker.locations(profile)?;
    checker.samples(profile)
}

struct Checker {
    strings: usize,
    mappings: IdIndex,
    locations: IdIndex,
    functions: IdIndex,
}

impl Checker {
    fn header(&self, profile: &Profile) -> Result<(), ValidateError> {
        let value_type = |what, position, value_type: &ValueType| {
            self.strings(what, position, &[value_type.r#type, value_type.unit])
        };
        for (position, sample_type) in profile.sample_type.iter().enumerate() {
            value_type("sample type", position, sample_type)?;
        }
        if let Some(period_type) = &profile.period_type {
            value_type("period type", 0, period_type)?;
        }
        for (position, comment) in profile.comment.iter().enumerate() {
            self.strings("comment", position, &[*comment])?;
        }
        let others = [
            profile.drop_frames,
            profile.keep_frames,
            profile.default_sample_type,
            profile.doc_url,
        ];
        self.strings("header", 0, &others)
    }

    fn mappings(&self, profile: &Profile) -> Result<(), ValidateError> {
        for (position, mapping) in profile.mapping.iter().enumerate() {
            unique(&self.mappings, "mapping", position, mapping.id)?;
            self.strings("mapping", position, &[mapping.filename, mapping.build_id])?;
            if mapping.memory_limit != 0 && mapping.memory_limit < mapping.memory_start {
                return Err(ValidateError::MappingRange {
                    owner: Owner { what: "mapping", position },
                    memory_start: mapping.memory_start,
                    memory_limit: mapping.memory_limit,
                });
            }
        }
        Ok(())
    }

    fn functions(&self, profile: &Profile) -> Result<(), ValidateError> {
        for (position, function) in profile.function.iter().enumerate() {
            unique(&self.functions, "function", position, function.id)?;
            let strings = [function.name, function.system_name, function.filename];
            self.strings("function", position, &strings)?;
        }
        Ok(())
    }

    fn locations(&self, profile: &Profile) -> Result<(), ValidateError> {
        for (position, location) in profile.location.iter().enumerate() {
            let owner = Owner { what: "location", position };
            unique(&self.locations, owner.what, position, location.id)?;
            if location.mapping_id != 0 && self.mappings.get(location.mapping_id).is_none() {
                let id = location.mapping_id;
                return Err(ValidateError::Dangling { owner, target: "mapping", id });
            }
            let functions = location.line.iter().map(|line| line.function_id);
            for id in functions.filter(|id| *id != 0) {
                if self.functions.get(id).is_none() {
                    return Err(ValidateError::Dangling { owner, target: "function", id });
                }
            }
        }
        Ok(())
    }

    fn samples(&self, profile: &Profile) -> Result<(), ValidateError> {
        let mut frames = 0_usize;
        for (position, sample) in profile.sample.iter().enumerate() {
            let owner = Owner { what: "sample", position };
            if sample.value.len() != profile.sample_type.len() {
                return Err(ValidateError::ValueCount {
                    owner,
                    values: sample.value.len(),
                    sample_types: profile.sample_type.len(),
                });
            }
            for id in &sample.location_id {
                let location = self
                    .locations
                    .get(*id)
                    .and_then(|index| profile.location.get(index))
                    .ok_or(ValidateError::Dangling { owner, target: "location", id: *id })?;
                frames = frames.saturating_add(location.line.len().max(1));
            }
            if frames > MAX_FRAMES {
                return Err(ValidateError::TooManyFrames { limit: MAX_FRAMES });
            }
            for Label { key, str, num_unit, .. } in &sample.label {
                self.strings(owner.what, position, &[*key, *str, *num_unit])?;
            }
        }
        Ok(())
    }

    fn strings(
        &self,
        what: &'static str,
        position: usize,
        indices: &[i64],
    ) -> Result<(), ValidateError> {
        let in_table = |index: i64| usize::try_from(index).is_ok_and(|index| index < self.strings);
        match indices.iter().find(|index| !in_table(**index)) {
            Some(index) => Err(ValidateError::StringIndex {
                owner: Owner { what, position },
                index: *index,
                len: self.strings,
            }),
            None => Ok(()),
        }
    }
}

/// The first one with an id is the one that the index knows; any other is a duplicate.
fn unique(
    index: &IdIndex,
    what: &'static str,
    position: usize,
    id: u64,
) -> Result<(), ValidateError> {
    if index.get(id) == Some(position) {
        Ok(())
    } else {
        Err(ValidateError::Id { owner: Owner { what, position }, id })
    }
}

#[cfg(test)]
mod tests {
    use everflame_proto::pprof::{Line, Location};

    use super::*;
    use crate::tables::tests::small_profile;

    fn check(break_it: impl FnOnce(&mut Profile), expected: &str) {
        let mut profile = small_profile();
        assert_eq!(validate(&profile), Ok(()));
        break_it(&mut profile);
        let message = validate(&profile).map_err(|error| error.to_string());
        assert_eq!(message, Err(expected.to_owned()));
    }

    #[test]
    fn each_contradiction_is_named() {
        check(|p| p.sample_type.clear(), "it has no sample types");
        check(|p| p.string_table.clear(), "its string table does not begin with an empty string");
        check(
            |p| p.string_table[0].push('x'),
            "its string table does not begin with an empty string",
        );
        check(
            |p| p.sample_type[1].unit = -1,
            "sample type #1 refers to string -1, but there are 17 strings",
        );
        check(
            |p| p.function[0].name = i64::MAX,
            "function #0 refers to string 9223372036854775807, but there are 17 strings",
        );
        check(
            |p| p.sample[0].label[0].str = 17,
            "sample #0 refers to string 17, but there are 17 strings",
        );
        check(|p| p.comment.push(99), "comment #0 refers to string 99, but there are 17 strings");
        check(|p| p.doc_url = 99, "header #0 refers to string 99, but there are 17 strings");
        check(|p| p.mapping[0].id = 0, "mapping #0 has id 0, which is 0 or taken by another one");
        check(|p| p.location[1].id = 1, "location #1 has id 1, which is 0 or taken by another one");
        check(|p| p.function[1].id = 1, "function #1 has id 1, which is 0 or taken by another one");
        check(
            |p| p.location[0].mapping_id = 9,
            "location #0 refers to mapping 9, which does not exist",
        );
        check(
            |p| p.location[0].line[0].function_id = u64::MAX,
            "location #0 refers to function 18446744073709551615, which does not exist",
        );
        check(
            |p| p.sample[1].location_id.push(0),
            "sample #1 refers to location 0, which does not exist",
        );
        check(|p| p.sample[0].value.truncate(1), "sample #0 has 1 values for 2 sample types");
        check(
            |p| p.mapping[0].memory_limit = 0x10,
            "mapping #0 ends at 0x10, before its start at 0x1000",
        );
    }

    #[test]
    fn unknown_mapping_and_function_are_allowed() {
        let mut profile = small_profile();
        profile.location[0].mapping_id = 0;
        profile.location[0].line[0].function_id = 0;
        profile.mapping[0].memory_limit = 0;
        assert_eq!(validate(&profile), Ok(()));
    }

    #[test]
    fn stacks_that_multiply_into_billions_of_frames_are_refused() {
        let mut profile = small_profile();
        profile.location.push(Location {
            id: 1000,
            line: vec![Line::default(); 10_000],
            ..Location::default()
        });
        profile.sample[0].location_id = vec![1000; 100_000];
        assert_eq!(validate(&profile), Err(ValidateError::TooManyFrames { limit: MAX_FRAMES }));
    }
}
