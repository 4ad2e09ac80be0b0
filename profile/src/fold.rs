//! Collapsed stacks: one line per stack, `root;...;leaf value`, as Brendan Gregg's
//! flamegraph.pl and everything after it reads them.

use std::collections::BTreeMap;

use everflame_proto::pprof::{Profile, Sample};

use crate::flame::{DEEPER, OTHER};
use crate::frames::Frames;
use crate::select::string;

/// Of deeper stacks what is beyond, on the side of the leaf, becomes one frame [`DEEPER`].
const MAX_DEPTH: usize = 4096;
/// All lines together. Beyond, stacks that are not there yet become one line [`OTHER`]: a
/// hostile profile can have a name of kilobytes thousands of times in each of its stacks.
const MAX_BYTES: usize = 1 << 30;

/// The stacks of a profile, root first and joined with `;`, each with the sum of its
/// values at `index`; sorted, each stack once.
///
/// Samples that have a label `comm` begin with it, as perf's collapsed stacks do. A `;`
/// within a name becomes `:`, and line breaks become spaces.
pub fn fold(profile: &Profile, index: usize) -> Vec<(String, i64)> {
    fold_within(profile, index, MAX_BYTES)
}

fn fold_within(profile: &Profile, index: usize, max_bytes: usize) -> Vec<(String, i64)> {
    let frames = Frames::new(profile);
    let names: Vec<String> = (0..frames.len())
        .map(|frame| u32::try_from(frame).map_or_else(|_| String::new(), |f| clean(frames.name(f))))
        .collect();
    let mut stacks: BTreeMap<String, i64> = BTreeMap::new();
    let mut bytes = 0_usize;
    for sample in &profile.sample {
        let value = sample.value.get(index).copied().unwrap_or(0);
        if value == 0 {
            continue;
        }
        let mut stack = comm(profile, sample).map(clean).unwrap_or_default();
        let mut path = frames.stack(sample).rev().peekable();
        for depth in 1..=MAX_DEPTH {
            let Some(frame) = path.next() else { break };
            if !stack.is_empty() {
                stack.push(';');
            }
            let name = usize::try_from(frame).ok().and_then(|frame| names.get(frame));
            let is_cut = depth == MAX_DEPTH && path.peek().is_some();
            stack.push_str(if is_cut { DEEPER } else { name.map_or("", String::as_str) });
        }
        if stack.is_empty() {
            stack.push_str("[no stack]");
        }
        if !stacks.contains_key(&stack) {
            bytes = bytes.saturating_add(stack.len());
            if bytes > max_bytes {
                OTHER.clone_into(&mut stack);
            }
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
    fn frames_beyond_the_depth_are_named_as_such() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let mut location = |name| {
            let info = FunctionInfo { name, ..FunctionInfo::default() };
            let function = builder.function(info);
            builder.location(None, 1, &[(function, 1)])
        };
        let (leaf, visit) = (location("leaf"), location("visit"));
        let stack = |depth| [vec![leaf], vec![visit; depth - 1]].concat();
        builder.sample(&stack(MAX_DEPTH), &[1], &[]);
        builder.sample(&stack(MAX_DEPTH + 1), &[2], &[]);
        let lines = fold(&builder.finish(), 0);
        let leaves: Vec<_> =
            lines.iter().map(|(line, value)| (line.rsplit(';').next().unwrap(), *value)).collect();
        assert_eq!(leaves, [(DEEPER, 2), ("leaf", 1)]);
    }

    #[test]
    fn lines_are_bounded_and_nothing_is_lost() {
        let lines = fold_within(&small_profile(), 0, "api;main;serve;parse;token".len());
        assert_eq!(
            lines,
            [("[other]".to_owned(), 3), ("api;main;serve;parse;token".to_owned(), 3)]
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
