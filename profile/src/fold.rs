//! Collapsed stacks: one line per stack, `root;...;leaf value`, as Brendan Gregg's
//! flamegraph.pl and everything after it reads them.

use std::collections::BTreeMap;

use everflame_proto::pprof::{Profile, Sample};

use crate::frames::Frames;
use crate::select::string;

/// Deeper stacks are cut here, at the root's side of the leaf; see [`crate::flame`].
const MAX_DEPTH: usize = 4096;

/// The stacks of a profile, root first and joined with `;`, each with the sum of its
/// values at `index`; sorted, each stack once.
///
/// Samples that have a label `comm` begin with it, as perf's collapsed stacks do. A `;`
/// within a name becomes `:`, and line breaks become spaces.
pub fn fold(profile: &Profile, index: usize) -> Vec<(String, i64)> {
    let frames = Frames::new(profile);
    let names: Vec<String> = (0..frames.len())
        .map(|frame| u32::try_from(frame).map_or_else(|_| String::new(), |f| clean(frames.name(f))))
        .collect();
    let mut stacks: BTreeMap<String, i64> = BTreeMap::new();
    for sample in &profile.sample {
        let value = sample.value.get(index).copied().unwrap_or(0);
        if value == 0 {
            continue;
        }
        let mut stack = comm(profile, sample).map(clean).unwrap_or_default();
        for frame in frames.stack(sample).rev().take(MAX_DEPTH) {
            if !stack.is_empty() {
                stack.push(';');
            }
            let name = usize::try_from(frame).ok().and_then(|frame| names.get(frame));
            stack.push_str(name.map_or("", String::as_str));
        }
        if stack.is_empty() {
            stack.push_str("[no stack]");
        }
        let sum = stacks.entry(stack).or_default();
        *sum = sum.saturating_add(value);
    }
    stacks.into_iter().collect()
}

fn comm<'a>(profile: &'a Profile, sample: &Sample) -> Option<&'a str> {
    sample
        .label
        .iter()
        .find(|label| label.str != 0 && string(profile, label.key) == "comm")
        .map(|label| string(profile, label.str))
}

fn clean(name: &str) -> String {
    name.replace(';', ":").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{FunctionInfo, ProfileBuilder};
    use crate::tables::tests::small_profile;

    #[test]
    fn stacks_are_root_first_below_the_comm() {
        let lines: Vec<String> =
            fold(&small_profile(), 0).into_iter().map(|(s, v)| format!("{s} {v}")).collect();
        assert_eq!(
            lines,
            ["api;main;[libc.so.6] 2", "api;main;serve 1", "api;main;serve;parse;token 3",]
        );
    }

    #[test]
    fn separators_within_names_are_replaced() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let info = FunctionInfo { name: "f<[u8; 4]>\nx", ..FunctionInfo::default() };
        let function = builder.function(info);
        let location = builder.location(None, 1, &[(function, 1)]);
        builder.sample(&[location], &[i64::MAX], &[]);
        builder.sample(&[], &[3], &[]);
        assert_eq!(
            fold(&builder.finish(), 0),
            [("[no stack]".to_owned(), 3), ("f<[u8: 4]> x".to_owned(), i64::MAX)]
        );
    }
}
