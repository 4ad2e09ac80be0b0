//! What the frames of a profile are called.
//!
//! Every table and picture names frames through this file, so a function is the same in
//! all of them. A frame's identity is its name and the last part of its file's path: two
//! static functions `init` in different files stay apart, and the same function meets
//! itself when it was built in another directory.
//!
//! All locations of a file that have no symbols are one frame, `[basename of the file]`: a
//! row for each address would scatter their cost over thousands of rows, and none of them
//! would meet itself in another build. The profile itself keeps each address.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use everflame_proto::pprof::{Function, Location, Profile, Sample};

use crate::ids::IdIndex;
use crate::select::string;

/// Longer names are cut when shown. They exist (generic code of several libraries in one
/// name), but a hostile profile could otherwise repeat a name of megabytes per stack.
const MAX_NAME_BYTES: usize = 4096;

/// A frame, as an index into a list of frames.
pub(crate) type FrameIndex = u32;

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) name: String,
    /// Source file, or file of the mapping where there are no symbols.
    pub(crate) filename: String,
}

/// The frames of all locations of a profile.
#[derive(Debug)]
pub(crate) struct Frames {
    frames: Vec<Frame>,
    stacks: Stacks,
}

impl Frames {
    pub(crate) fn new(profile: &Profile) -> Self {
        let mut index: HashMap<(String, String), FrameIndex, foldhash::fast::RandomState> =
            HashMap::default();
        let mut frames = Vec::new();
        let stacks = Stacks::new(profile, &mut |name, filename| {
            let (name, filename) = (cut(name), cut(filename));
            let next = FrameIndex::try_from(frames.len()).unwrap_or(FrameIndex::MAX);
            let key = (name.into_owned(), basename(&filename).to_owned());
            match index.get(&key) {
                Some(known) => *known,
                None => {
                    frames.push(Frame { name: key.0.clone(), filename: filename.into_owned() });
                    index.insert(key, next);
                    next
                }
            }
        });
        Self { frames, stacks }
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn name(&self, frame: FrameIndex) -> &str {
        self.get(frame).map_or("", |frame| frame.name.as_str())
    }

    /// All frames, in the order of their indices.
    pub(crate) fn into_frames(self) -> Vec<Frame> {
        self.frames
    }

    /// See [`Stacks::of`].
    pub(crate) fn stack<'a>(
        &'a self,
        sample: &'a Sample,
    ) -> impl DoubleEndedIterator<Item = FrameIndex> + 'a {
        self.stacks.of(sample)
    }

    fn get(&self, frame: FrameIndex) -> Option<&Frame> {
        usize::try_from(frame).ok().and_then(|index| self.frames.get(index))
    }
}

/// The frames of all locations of a profile, as numbers that somebody else gives to names: for sums over many
/// profiles, whose frames need not be named once for each.
#[derive(Debug)]
pub struct Stacks {
    locations: IdIndex,
    /// For each location its part of `lines`.
    ranges: Vec<Range<usize>>,
    lines: Vec<FrameIndex>,
}

impl Stacks {
    /// Asks `intern` for the number of each name and file (or file of the mapping, where there is no symbol).
    pub fn new(profile: &Profile, intern: &mut dyn FnMut(&str, &str) -> FrameIndex) -> Self {
        let mut namer = Namer {
            profile,
            mappings: IdIndex::new(profile.mapping.iter().map(|mapping| mapping.id)),
            functions: IdIndex::new(profile.function.iter().map(|function| function.id)),
            named_functions: vec![None; profile.function.len()],
            intern,
        };
        let mut ranges = Vec::with_capacity(profile.location.len());
        let mut lines = Vec::with_capacity(profile.location.len());
        for location in &profile.location {
            let start = lines.len();
            for line in &location.line {
                lines.push(namer.line(location, line.function_id));
            }
            if location.line.is_empty() {
                lines.push(namer.unresolved(location));
            }
            ranges.push(start..lines.len());
        }
        let locations = IdIndex::new(profile.location.iter().map(|location| location.id));
        Self { locations, ranges, lines }
    }

    /// The frames of a stack, leaf first, inlined ones included.
    pub fn of<'a>(
        &'a self,
        sample: &'a Sample,
    ) -> impl DoubleEndedIterator<Item = FrameIndex> + 'a {
        sample.location_id.iter().flat_map(|id| {
            let range = self.locations.get(*id).and_then(|index| self.ranges.get(index));
            let lines = range.and_then(|range| self.lines.get(range.clone()));
            lines.unwrap_or_default().iter().copied()
        })
    }
}

/// The last part of a path.
pub(crate) fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

struct Namer<'a> {
    profile: &'a Profile,
    mappings: IdIndex,
    functions: IdIndex,
    /// Each function is named once, however many locations are in it.
    named_functions: Vec<Option<FrameIndex>>,
    intern: &'a mut dyn FnMut(&str, &str) -> FrameIndex,
}

impl Namer<'_> {
    fn line(&mut self, location: &Location, function_id: u64) -> FrameIndex {
        let Some(position) = self.functions.get(function_id) else {
            return self.unresolved(location);
        };
        if let Some(Some(frame)) = self.named_functions.get(position) {
            return *frame;
        }
        let function = self.profile.function.get(position).copied().unwrap_or_default();
        let name = function_name(self.profile, &function);
        if name.is_empty() {
            return self.unresolved(location);
        }
        let frame = (self.intern)(name, string(self.profile, function.filename));
        if let Some(named) = self.named_functions.get_mut(position) {
            *named = Some(frame);
        }
        frame
    }

    fn unresolved(&mut self, location: &Location) -> FrameIndex {
        let mapping = self
            .mappings
            .get(location.mapping_id)
            .and_then(|position| self.profile.mapping.get(position));
        let profile = self.profile;
        let path = mapping.map_or("", |mapping| string(profile, mapping.filename));
        let name = match basename(path) {
            "" => Cow::Borrowed("[unknown]"),
            name if name.starts_with('[') => Cow::Borrowed(name),
            name => Cow::Owned(format!("[{name}]")),
        };
        (self.intern)(&name, path)
    }
}

fn function_name<'a>(profile: &'a Profile, function: &Function) -> &'a str {
    match string(profile, function.name) {
        "" => string(profile, function.system_name),
        name => name,
    }
}

fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_NAME_BYTES {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(MAX_NAME_BYTES);
    Cow::Owned(format!("{}…", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{FunctionInfo, MappingInfo, ProfileBuilder};
    use crate::tables::tests::small_profile;

    fn names(profile: &Profile) -> Vec<String> {
        Frames::new(profile).into_frames().into_iter().map(|frame| frame.name).collect()
    }

    /// The frames of two places without symbols in one file.
    fn unresolved(filename: &str) -> Vec<String> {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let mapping = builder.mapping(MappingInfo {
            memory_start: 0x5000,
            memory_limit: 0x6000,
            file_offset: 0x200,
            filename,
            build_id: "",
        });
        for address in [0x5010, 0x5020] {
            builder.location(Some(mapping), address, &[]);
        }
        names(&builder.finish())
    }

    #[test]
    fn unresolved_frames_of_a_file_are_one() {
        assert_eq!(unresolved("/usr/lib/libc.so.6"), ["[libc.so.6]"]);
        assert_eq!(unresolved("[kernel.kallsyms]"), ["[kernel.kallsyms]"]);
        assert_eq!(unresolved("/srv/api (deleted)"), ["[api (deleted)]"]);
        assert_eq!(unresolved(""), ["[unknown]"]);
    }

    #[test]
    fn inlined_frames_come_leaf_first() {
        let profile = small_profile();
        let frames = Frames::new(&profile);
        let stack: Vec<_> = frames.stack(&profile.sample[0]).map(|f| frames.name(f)).collect();
        assert_eq!(stack, ["token", "parse", "serve", "main"]);
    }

    #[test]
    fn function_is_the_same_in_another_directory_but_not_in_another_file() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        for filename in ["/build/41/net.c", "/build/42/net.c", "/build/42/disk.c"] {
            let info = FunctionInfo { name: "init", filename, ..FunctionInfo::default() };
            let function = builder.function(info);
            builder.location(None, 1, &[(function, 0)]);
        }
        assert_eq!(names(&builder.finish()), ["init", "init"]);
    }

    #[test]
    fn names_fall_back_to_the_symbol_and_then_to_the_address() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let symbol =
            builder.function(FunctionInfo { system_name: "_ZN1f", ..FunctionInfo::default() });
        let nameless = builder.function(FunctionInfo::default());
        builder.location(None, 1, &[(symbol, 0), (nameless, 0)]);
        assert_eq!(names(&builder.finish()), ["_ZN1f", "[unknown]"]);
    }

    #[test]
    fn endless_names_are_cut_between_characters() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let name = "é".repeat(MAX_NAME_BYTES);
        let function = builder.function(FunctionInfo { name: &name, ..FunctionInfo::default() });
        builder.location(None, 1, &[(function, 0)]);
        let names = names(&builder.finish());
        assert!(names[0].len() <= MAX_NAME_BYTES + 3 && names[0].ends_with('…'));
    }
}
