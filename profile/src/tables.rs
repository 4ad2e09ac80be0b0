//! The tables of a profile under construction: each string, function, mapping, location
//! and stack exists once, and is found again by what it holds.
//!
//! [`crate::builder`] and [`crate::merge`] both write through these. Ids are handed out
//! in order from 1, so what is built here is always dense.

use std::collections::HashMap;
use std::hash::Hash;

use everflame_proto::pprof::{Function, Label, Line, Location, Mapping, Profile, Sample};

type Index<K> = HashMap<K, usize, foldhash::fast::RandomState>;

#[derive(Debug)]
pub(crate) struct Tables {
    /// Everything but `string_table`, `mapping`, `location`, `function` and `sample`
    /// is the owner's to fill in.
    pub(crate) profile: Profile,
    strings: Index<String>,
    functions: Index<[i64; 4]>,
    mappings: Index<MappingKey>,
    locations: Index<LocationKey>,
    samples: Index<SampleKey>,
    /// About what all of this takes in memory.
    bytes: usize,
}

/// What an entry of an [`Index`] takes beside its key: the position, and a share of the
/// table that is empty.
const INDEX_ENTRY_BYTES: usize = 16;

/// What makes two mappings the same; see [`crate::merge`] for when their place counts.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct MappingKey {
    pub(crate) filename: i64,
    pub(crate) build_id: i64,
    pub(crate) file_offset: u64,
    /// Start and limit, where they are a part of the identity.
    pub(crate) range: Option<(u64, u64)>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct LocationKey {
    mapping_id: u64,
    address: u64,
    /// Function, line, column.
    lines: Box<[(u64, i64, i64)]>,
    is_folded: bool,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct SampleKey {
    location_ids: Box<[u64]>,
    /// Key, string, number, unit; sorted.
    labels: Box<[[i64; 4]]>,
}

impl Tables {
    pub(crate) fn new() -> Self {
        let mut tables = Self {
            profile: Profile::default(),
            strings: Index::default(),
            functions: Index::default(),
            mappings: Index::default(),
            locations: Index::default(),
            samples: Index::default(),
            bytes: 0,
        };
        tables.string("");
        tables
    }

    /// About how much memory the tables take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn string(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return as_string_index(*index);
        }
        // In the table and in the index.
        self.count(2 * (size_of::<String>() + text.len()));
        let index = self.profile.string_table.len();
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        as_string_index(index)
    }

    /// The id of a function; its own id is ignored.
    pub(crate) fn function(&mut self, function: Function) -> u64 {
        let key = [function.name, function.system_name, function.filename, function.start_line];
        let list = &mut self.profile.function;
        let (id, is_new) = intern(&mut self.functions, key, list, |id| Function { id, ..function });
        if is_new {
            self.count(size_of::<Function>() + size_of::<[i64; 4]>());
        }
        id
    }

    /// The id of a mapping; its own id is ignored.
    pub(crate) fn mapping(&mut self, key: MappingKey, mapping: Mapping) -> u64 {
        let list = &mut self.profile.mapping;
        let (id, is_new) = intern(&mut self.mappings, key, list, |id| Mapping { id, ..mapping });
        if is_new {
            self.count(size_of::<Mapping>() + size_of::<MappingKey>());
        }
        id
    }

    pub(crate) fn mapping_mut(&mut self, id: u64) -> Option<&mut Mapping> {
        let position = usize::try_from(id.checked_sub(1)?).ok()?;
        self.profile.mapping.get_mut(position)
    }

    /// The id of a location. The flags of its mapping come to say what its lines have.
    pub(crate) fn location(
        &mut self,
        mapping_id: u64,
        address: u64,
        lines: Vec<Line>,
        is_folded: bool,
    ) -> u64 {
        let has_filenames = lines.iter().any(|line| self.has_filename(line.function_id));
        if let Some(mapping) = self.mapping_mut(mapping_id) {
            mapping.has_functions |= !lines.is_empty();
            mapping.has_filenames |= has_filenames;
            mapping.has_line_numbers |= lines.iter().any(|line| line.line != 0);
            mapping.has_inline_frames |= lines.len() > 1;
        }
        let key = LocationKey {
            mapping_id,
            address,
            lines: lines.iter().map(|line| (line.function_id, line.line, line.column)).collect(),
            is_folded,
        };
        let lines_bytes = lines.len() * (size_of::<Line>() + size_of::<(u64, i64, i64)>());
        let list = &mut self.profile.location;
        let (id, is_new) = intern(&mut self.locations, key, list, |id| Location {
            id,
            mapping_id,
            address,
            line: lines,
            is_folded,
        });
        if is_new {
            self.count(size_of::<Location>() + size_of::<LocationKey>() + lines_bytes);
        }
        id
    }

    /// Adds the values to those of the sample with the same stack and labels.
    pub(crate) fn sample(&mut self, location_ids: &[u64], values: &[i64], mut labels: Vec<Label>) {
        let label_key = |label: &Label| [label.key, label.str, label.num, label.num_unit];
        labels.sort_unstable_by_key(label_key);
        let key = SampleKey {
            location_ids: location_ids.into(),
            labels: labels.iter().map(label_key).collect(),
        };
        if let Some(sample) =
            self.samples.get(&key).and_then(|index| self.profile.sample.get_mut(*index))
        {
            for (sum, value) in sample.value.iter_mut().zip(values) {
                *sum = sum.saturating_add(*value);
            }
            return;
        }
        self.count(
            size_of::<Sample>()
                + size_of::<SampleKey>()
                + 2 * size_of_val(location_ids)
                + size_of_val(values)
                + labels.len() * (size_of::<Label>() + size_of::<[i64; 4]>()),
        );
        self.samples.insert(key, self.profile.sample.len());
        self.profile.sample.push(Sample {
            location_id: location_ids.to_vec(),
            value: values.to_vec(),
            label: labels,
        });
    }

    /// A new entry of one of the tables, and of its index.
    fn count(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes + INDEX_ENTRY_BYTES);
    }

    fn has_filename(&self, function_id: u64) -> bool {
        let position = function_id.checked_sub(1).and_then(|before| usize::try_from(before).ok());
        position
            .and_then(|position| self.profile.function.get(position))
            .is_some_and(|function| function.filename != 0)
    }
}

/// The id (position + 1) of the entry with this key, which is made if there is none, and
/// whether it was made.
fn intern<K: Eq + Hash, T>(
    index: &mut Index<K>,
    key: K,
    list: &mut Vec<T>,
    make: impl FnOnce(u64) -> T,
) -> (u64, bool) {
    let position = *index.entry(key).or_insert(list.len());
    let id = u64::try_from(position).map_or(u64::MAX, |position| position.saturating_add(1));
    let is_new = position == list.len();
    if is_new {
        list.push(make(id));
    }
    (id, is_new)
}

/// A table of more than 2^63 strings does not fit into any memory.
fn as_string_index(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use everflame_proto::pprof::Profile;

    use crate::builder::{FunctionInfo, LabelValue, MappingInfo, ProfileBuilder};

    /// Two mappings, four functions (one of them inlined), three stacks, one frame
    /// without symbols:
    ///
    /// ```text
    /// main -> serve -> parse        3 samples, 30 ns
    /// main -> serve                 1 sample,  10 ns
    /// main -> [libc.so.6]    2 samples, 20 ns
    /// ```
    pub(crate) fn small_profile() -> Profile {
        let mut builder =
            ProfileBuilder::new(&[("samples", "count"), ("cpu", "nanoseconds")], "cpu");
        builder.set_period("cpu", "nanoseconds", 10);
        builder.set_time(1_700_000_000_000_000_000, 2_000_000_000);
        let mapping = |start, filename, build_id| MappingInfo {
            memory_start: start,
            memory_limit: start + 0x9000,
            file_offset: start,
            filename,
            build_id,
        };
        let server = builder.mapping(mapping(0x1000, "/srv/api", "aa01"));
        let libc = builder.mapping(mapping(0x2000, "/usr/lib/libc.so.6", "bb02"));
        let mut function = |name, start_line| {
            builder.function(FunctionInfo {
                name,
                system_name: name,
                filename: "/src/api/main.c",
                start_line,
            })
        };
        let (main, serve) = (function("main", 1), function("serve", 10));
        let (parse, token) = (function("parse", 20), function("token", 30));
        let in_main = builder.location(Some(server), 0x1010, &[(main, 3)]);
        let in_serve = builder.location(Some(server), 0x1100, &[(serve, 12)]);
        let in_parse = builder.location(Some(server), 0x1200, &[(token, 31), (parse, 22)]);
        let in_libc = builder.location(Some(libc), 0x2a10, &[]);
        let labels = [("comm", LabelValue::Str("api")), ("pid", LabelValue::Num(7, ""))];
        builder.sample(&[in_parse, in_serve, in_main], &[3, 30], &labels);
        builder.sample(&[in_serve, in_main], &[1, 10], &labels);
        builder.sample(&[in_libc, in_main], &[2, 20], &labels);
        builder.finish()
    }
}
