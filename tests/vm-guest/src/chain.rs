//! The stacks that the workload has, and how many of its samples show them.
//!
//! `tests/workloads/deep.c` says what its stack looks like.

use std::collections::BTreeMap;

/// Frames of a stack, all of them.
pub(crate) const DEPTH: usize = 22;

/// main, two functions of libc, _start; and the leaf.
const OTHER_FRAMES: usize = 5;

/// How many wrong stacks are shown.
const MAX_SHOWN: usize = 3;

/// One process of the workload.
pub(crate) struct Workload {
    check: &'static str,
    pub(crate) program: &'static str,
    pub(crate) mode: &'static str,
    leaf: &'static str,
}

pub(crate) const WORKLOADS: &[Workload] = &[
    Workload { check: "unwind", program: "deep", mode: "user", leaf: "leaf_user" },
    Workload { check: "unwind-static", program: "deep-static", mode: "user", leaf: "leaf_user" },
    Workload { check: "unwind-syscall", program: "deep", mode: "kernel", leaf: "leaf_kernel" },
    #[cfg(target_arch = "aarch64")]
    Workload { check: "unwind-signed", program: "deep-signed", mode: "user", leaf: "leaf_user" },
];

/// Samples whose leaf is the leaf function.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) all: u64,
    pub(crate) complete: u64,
    /// The most frequent stacks that are not what they should be.
    pub(crate) wrong: Vec<(String, u64)>,
}

/// Looks at the stacks of each process, which are leaf first with the process's name last.
pub(crate) fn check_all(stacks: &[(Vec<String>, u64)]) -> Vec<(&'static str, Share)> {
    WORKLOADS.iter().map(|workload| (workload.check, share(workload, stacks))).collect()
}

fn share(workload: &Workload, stacks: &[(Vec<String>, u64)]) -> Share {
    let mut share = Share::default();
    let mut wrong: BTreeMap<String, u64> = BTreeMap::new();
    for (frames, samples) in stacks {
        let Some((process, frames)) = frames.split_last() else { continue };
        // Frames of the kernel come before it.
        let leaf = frames.iter().position(|name| name == workload.leaf);
        let (Some(leaf), true) = (leaf, process == workload.program) else { continue };
        share.all += samples;
        if is_complete(&frames[leaf..]) {
            share.complete += samples;
        } else {
            *wrong.entry(frames[leaf..].join(" < ")).or_default() += samples;
        }
    }
    share.wrong = wrong.into_iter().collect();
    share.wrong.sort_by_key(|(_, samples)| std::cmp::Reverse(*samples));
    share.wrong.truncate(MAX_SHOWN);
    share
}

/// From the leaf function to the program's first one. Those of libc have no names where its
/// symbols are stripped.
fn is_complete(frames: &[String]) -> bool {
    let between = DEPTH - OTHER_FRAMES;
    frames.len() == DEPTH
        && (1..=between).all(|number| frames[number] == format!("frame_{number:03}"))
        && frames[between + 1] == "main"
        && frames[DEPTH - 1] == "_start"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(text: &str) -> Vec<String> {
        let chain: Vec<String> = (1..=17).map(|number| format!("frame_{number:03}")).collect();
        text.replace("CHAIN", &chain.join(" ")).split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn only_the_whole_chain_counts() {
        let stacks = [
            ("leaf_user CHAIN main [libc.so.6] __libc_start_main _start deep", 90),
            ("tick leaf_user CHAIN main [libc.so.6] __libc_start_main _start deep", 5),
            ("leaf_user frame_001 deep", 3),
            ("leaf_user CHAIN main [libc.so.6] __libc_start_main deep", 1),
            ("leaf_user CHAIN main [libc.so.6] x __libc_start_main _start deep", 1),
            ("frame_001 deep", 1000),
            ("leaf_user deep-static", 7),
        ];
        let stacks = stacks.map(|(text, samples)| (stack(text), samples));
        let shares = check_all(&stacks);
        let (name, share) = &shares[0];
        assert_eq!((*name, share.all, share.complete), ("unwind", 100, 95));
        assert_eq!(share.wrong[0], ("leaf_user < frame_001".to_owned(), 3));
        assert_eq!((shares[1].1.all, shares[1].1.complete), (7, 0));
        assert_eq!(shares[2].1, Share::default());
    }
}
