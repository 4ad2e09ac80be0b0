//! The report on memory that is held: which stacks allocated what is still there at the end of a recording,
//! and since when.
//!
//! It is made of a profile of kind `alloc`, mode `live`, whose samples have what was allocated in `alloc_*`,
//! what of it is there in `inuse_*`, and in the label `oldest` how old the oldest of that is.
//!
//! What is held is not all leaked: caches are held, and requests that are being served. A leak is a stack
//! that holds more each time that one looks, and whose oldest objects are about as old as the recording.

use std::collections::HashMap;

use everflame_proto::pprof::{Profile, Sample};
use serde::Serialize;

use crate::frames::{Frames, basename};
use crate::ids::IdIndex;
use crate::select::{label, number, sample_type_index, string};

/// What is held, by stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeakReport {
    /// By all stacks together.
    pub held_bytes: i64,
    /// Likewise.
    pub held_objects: i64,
    /// The stacks that hold something, the one that holds most bytes first; of equal ones the one with
    /// the oldest objects.
    pub stacks: Vec<HeldStack>,
}

/// What was allocated by one stack of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeldStack {
    /// The process, if the profile says so.
    pub pid: Option<String>,
    /// Its name.
    pub comm: Option<String>,
    /// Bytes that are there.
    pub held_bytes: i64,
    /// Objects that are there.
    pub held_objects: i64,
    /// How old the oldest of them is, in nanoseconds; 0 if that is not known.
    pub oldest_ns: i64,
    /// Bytes that were allocated, the ones that are there and those that were freed.
    pub allocated_bytes: i64,
    /// Objects that were allocated.
    pub allocated_objects: i64,
    /// File and line of the innermost frame that has one.
    pub site: Option<String>,
    /// Functions, leaf first.
    pub stack: Vec<String>,
}

impl LeakReport {
    /// Puts the stacks with the oldest objects first; of equal ages the one that holds most.
    pub fn sort_by_age(&mut self) {
        self.stacks.sort_by_key(|held| (-held.oldest_ns, -held.held_bytes));
    }
}

/// Makes the report of a profile of kind `alloc`; empty of any other.
pub fn leaks(profile: &Profile) -> LeakReport {
    let names = ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"];
    let indices = names.map(|name| sample_type_index(profile, Some(name)).ok());
    let [Some(objects), Some(bytes), Some(held_objects), Some(held_bytes)] = indices else {
        return LeakReport::default();
    };
    let frames = Frames::new(profile);
    let sites = Sites::new(profile);
    let mut by_stack: HashMap<(String, String, Vec<String>), HeldStack> = HashMap::new();
    for sample in &profile.sample {
        let value = |index: usize| sample.value.get(index).copied().unwrap_or(0);
        let stack: Vec<String> =
            frames.stack(sample).map(|frame| frames.name(frame).to_owned()).collect();
        let text = |key| label(profile, sample, key).to_owned();
        let key = (text("pid"), text("comm"), stack);
        let held = by_stack.entry(key).or_default();
        let add = |sum: &mut i64, index| *sum = sum.saturating_add(value(index));
        add(&mut held.allocated_objects, objects);
        add(&mut held.allocated_bytes, bytes);
        add(&mut held.held_objects, held_objects);
        add(&mut held.held_bytes, held_bytes);
        held.oldest_ns = held.oldest_ns.max(number(profile, sample, "oldest"));
        if held.site.is_none() {
            held.site = sites.of(sample);
        }
    }
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let mut stacks: Vec<HeldStack> = by_stack
        .into_iter()
        .filter(|(_, held)| held.held_bytes > 0)
        .map(|((pid, comm, stack), held)| HeldStack {
            pid: some(pid),
            comm: some(comm),
            stack,
            ..held
        })
        .collect();
    stacks.sort_by(|a, b| {
        (b.held_bytes, b.oldest_ns, &a.stack).cmp(&(a.held_bytes, a.oldest_ns, &b.stack))
    });
    let sum = |part: fn(&HeldStack) -> i64| stacks.iter().map(part).fold(0, i64::saturating_add);
    LeakReport {
        held_bytes: sum(|held| held.held_bytes),
        held_objects: sum(|held| held.held_objects),
        stacks,
    }
}

/// Where lines of code are.
struct Sites<'a> {
    profile: &'a Profile,
    locations: IdIndex,
    functions: IdIndex,
}

impl<'a> Sites<'a> {
    fn new(profile: &'a Profile) -> Self {
        Self {
            profile,
            locations: IdIndex::new(profile.location.iter().map(|location| location.id)),
            functions: IdIndex::new(profile.function.iter().map(|function| function.id)),
        }
    }

    /// `file.c:12` of the innermost frame of which that is known.
    fn of(&self, sample: &Sample) -> Option<String> {
        let location = |id: &u64| self.profile.location.get(self.locations.get(*id)?);
        let mut lines =
            sample.location_id.iter().filter_map(location).flat_map(|location| &location.line);
        lines.find_map(|line| {
            let function = self.profile.function.get(self.functions.get(line.function_id)?)?;
            let file = basename(string(self.profile, function.filename));
            (line.line > 0 && !file.is_empty()).then(|| format!("{file}:{}", line.line))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{FunctionInfo, LabelValue, ProfileBuilder};
    use crate::kind::Kind;

    /// Stacks by their leaf: (function, [objects, bytes, held objects, held bytes], age in s).
    fn profile(stacks: &[(&str, [i64; 4], i64)]) -> Profile {
        let mut builder = ProfileBuilder::new(Kind::Alloc.sample_types(), "inuse_space");
        let info = |name| FunctionInfo { name, filename: "/src/a.c", ..FunctionInfo::default() };
        let main = builder.function(info("main"));
        let main = builder.location(None, 1, &[(main, 3)]);
        for (address, (name, values, age)) in (2..).zip(stacks) {
            let leaf = builder.function(info(name));
            let leaf = builder.location(None, address, &[(leaf, 7)]);
            let labels = [
                ("pid", LabelValue::Str("7")),
                ("oldest", LabelValue::Num(age * 1_000_000_000, "nanoseconds")),
            ];
            builder.sample(&[leaf, main], values, &labels[..if *age > 0 { 2 } else { 1 }]);
        }
        builder.finish()
    }

    #[test]
    fn stacks_that_hold_most_come_first_and_those_that_hold_nothing_not_at_all() {
        let mut report = leaks(&profile(&[
            ("small_and_old", [1, 10, 1, 10], 9),
            ("freed", [5, 5000, 0, 0], 0),
            // Of two windows, the first of which does not know the end.
            ("large", [4, 400, 0, 0], 0),
            ("large", [6, 600, 5, 500], 2),
        ]));
        let leaves = |report: &LeakReport| {
            report.stacks.iter().map(|h| h.stack[0].clone()).collect::<Vec<_>>()
        };
        assert_eq!(leaves(&report), ["large", "small_and_old"]);
        assert_eq!((report.held_bytes, report.held_objects), (510, 6));
        let large = &report.stacks[0];
        assert_eq!((large.allocated_objects, large.allocated_bytes), (10, 1000));
        assert_eq!(large.oldest_ns, 2_000_000_000);
        assert_eq!(large.site.as_deref(), Some("a.c:7"));
        assert_eq!((large.pid.as_deref(), large.comm.as_deref()), (Some("7"), None));
        report.sort_by_age();
        assert_eq!(leaves(&report), ["small_and_old", "large"]);
    }

    #[test]
    fn other_kinds_hold_nothing() {
        let cpu = ProfileBuilder::new(Kind::Cpu.sample_types(), "cpu").finish();
        assert_eq!(leaks(&cpu), LeakReport::default());
    }
}
