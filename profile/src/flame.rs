//! Stacks as one tree: what a flame graph draws.
//!
//! A tree may be walked, serialised and dropped by recursion, and it ends up in browsers,
//! so it is bounded: frames deeper than [`MAX_DEPTH`] become one frame [`DEEPER`], and of
//! a tree with more than [`MAX_NODES`] nodes the smallest become [`OTHER`] frames. While it
//! is built it is bounded too: a profile of some hundred kilobytes can describe a tree of
//! tens of millions of nodes. Values always add up to those of the profile.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use everflame_proto::pprof::Profile;
use serde::Serialize;

use crate::frames::Frames;
use crate::select::sample_types;

/// The deepest a tree gets, the root not counted.
pub const MAX_DEPTH: usize = 512;
/// The frame that stands for those deeper than [`MAX_DEPTH`].
pub const DEEPER: &str = "[deeper frames]";
/// The most nodes of a tree, [`OTHER`] ones not counted.
pub const MAX_NODES: usize = 200_000;
/// The frame that stands for those that are too small for a tree of [`MAX_NODES`].
pub const OTHER: &str = "[other]";
/// The most nodes while a tree is built, before the smallest ones are taken out. Beyond,
/// calls that were not seen before become [`OTHER`] frames, of which each node has one.
const MAX_NODES_TO_BUILD: usize = 10 * MAX_NODES;

/// All stacks of a profile, sharing what they have in common from the root on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlameTree {
    /// What the values are, such as "cpu".
    pub sample_type: String,
    /// And in what, such as "nanoseconds".
    pub unit: String,
    /// Named "total"; its children are the outermost functions.
    pub root: FlameNode,
}

/// A function, called by the functions above it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlameNode {
    /// The function's name.
    pub name: String,
    /// Of stacks that end here.
    pub self_value: i64,
    /// Of stacks that come through here.
    pub total_value: i64,
    /// What it calls, the most expensive first.
    pub children: Vec<FlameNode>,
}

/// The tree of the values at `index` of each sample (see [`crate::sample_type_index`]).
pub fn flame(profile: &Profile, index: usize) -> FlameTree {
    let mut arena = Arena::new(profile, index, MAX_NODES_TO_BUILD);
    let (sample_type, unit) = sample_types(profile).get(index).copied().unwrap_or_default();
    FlameTree {
        sample_type: sample_type.to_owned(),
        unit: unit.to_owned(),
        root: arena.prune(MAX_NODES).tree(),
    }
}

/// The tree as a flat list in which parents come before their children, so that each step
/// of building it is a loop.
struct Arena {
    nodes: Vec<Node>,
    names: Vec<String>,
    /// The name [`OTHER`].
    other: usize,
}

#[derive(Clone, Copy)]
struct Node {
    parent: usize,
    name: usize,
    self_value: i64,
    total_value: i64,
}

impl Arena {
    fn new(profile: &Profile, index: usize, max_nodes: usize) -> Self {
        let frames = Frames::new(profile);
        let (mut names, frame_names) = names(&frames);
        let deeper = names.len();
        names.push(DEEPER.to_owned());
        let other = names.len();
        names.push(OTHER.to_owned());

        let root = Node { parent: 0, name: usize::MAX, self_value: 0, total_value: 0 };
        let mut nodes = vec![root];
        let mut children: HashMap<(usize, usize), usize, foldhash::fast::RandomState> =
            HashMap::default();
        for sample in &profile.sample {
            let value = sample.value.get(index).copied().unwrap_or(0);
            if value == 0 {
                continue;
            }
            let mut stack = frames.stack(sample).rev().peekable();
            let mut parent = 0;
            for depth in 1..=MAX_DEPTH {
                let Some(frame) = stack.next() else { break };
                let is_cut = depth == MAX_DEPTH && stack.peek().is_some();
                let name = usize::try_from(frame).ok().and_then(|f| frame_names.get(f)).copied();
                let name = name.filter(|_| !is_cut).unwrap_or(deeper);
                let known = children.get(&(parent, name)).copied();
                let is_full = known.is_none() && nodes.len() >= max_nodes;
                let name = if is_full { other } else { name };
                parent = known.unwrap_or_else(|| {
                    *children.entry((parent, name)).or_insert_with(|| {
                        nodes.push(Node { parent, name, self_value: 0, total_value: 0 });
                        nodes.len() - 1
                    })
                });
                if is_full {
                    break;
                }
            }
            if let Some(leaf) = nodes.get_mut(parent) {
                leaf.self_value = leaf.self_value.saturating_add(value);
            }
        }
        let mut arena = Self { nodes, names, other };
        arena.sum();
        arena
    }

    /// total = self + the totals of the children.
    fn sum(&mut self) {
        for index in (0..self.nodes.len()).rev() {
            let Some(node) = self.nodes.get_mut(index) else { continue };
            node.total_value = node.total_value.saturating_add(node.self_value);
            let (parent, total_value) = (node.parent, node.total_value);
            if index != 0
                && let Some(parent) = self.nodes.get_mut(parent)
            {
                parent.total_value = parent.total_value.saturating_add(total_value);
            }
        }
    }

    /// Keeps the `max_nodes` largest nodes; what hangs below them becomes [`OTHER`].
    fn prune(&mut self, max_nodes: usize) -> &mut Self {
        if self.nodes.len() <= max_nodes {
            return self;
        }
        // Parents come first, so every index below is one of `nodes`.
        let mut first_child = vec![usize::MAX; self.nodes.len()];
        let mut next_sibling = vec![usize::MAX; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().skip(1) {
            next_sibling[index] = std::mem::replace(&mut first_child[node.parent], index);
        }

        let other_name = self.other;
        let mut kept: Vec<Node> = Vec::with_capacity(max_nodes);
        // For each kept node, its child that stands for those that are not.
        let mut others: HashMap<usize, usize> = HashMap::new();
        // Largest first; nodes enter when their parent is kept, under its new index.
        let mut candidates = BinaryHeap::from([(u64::MAX, Reverse(0), 0)]);
        while let Some((_, Reverse(index), parent)) = candidates.pop() {
            let node = self.nodes[index];
            if kept.len() - others.len() < max_nodes && node.name != other_name {
                let new_index = kept.len();
                kept.push(Node { parent, ..node });
                let mut child = first_child[index];
                while child != usize::MAX {
                    let size = self.nodes[child].total_value.unsigned_abs();
                    candidates.push((size, Reverse(child), new_index));
                    child = next_sibling[child];
                }
                continue;
            }
            let other = *others.entry(parent).or_insert_with(|| {
                kept.push(Node { parent, name: other_name, self_value: 0, total_value: 0 });
                kept.len() - 1
            });
            let other = &mut kept[other];
            other.self_value = other.self_value.saturating_add(node.total_value);
            other.total_value = other.self_value;
        }
        self.nodes = kept;
        self
    }

    fn tree(&self) -> FlameNode {
        let mut built: Vec<FlameNode> = self
            .nodes
            .iter()
            .map(|node| FlameNode {
                name: self.names.get(node.name).map_or("total", String::as_str).to_owned(),
                self_value: node.self_value,
                total_value: node.total_value,
                children: Vec::new(),
            })
            .collect();
        while let Some(mut node) = built.pop() {
            node.children.sort_by(|a, b| {
                b.total_value.cmp(&a.total_value).then_with(|| a.name.cmp(&b.name))
            });
            let Some(parent) = self.nodes.get(built.len()).filter(|_| !built.is_empty()) else {
                return node;
            };
            if let Some(parent) = built.get_mut(parent.parent) {
                parent.children.push(node);
            }
        }
        FlameNode::default()
    }
}

/// The distinct names, and for each frame which one it has: siblings with the same name
/// in different files would look the same in a picture, so they are one node.
fn names(frames: &Frames) -> (Vec<String>, Vec<usize>) {
    let mut names: Vec<String> = Vec::new();
    let mut index: HashMap<&str, usize, foldhash::fast::RandomState> = HashMap::default();
    let frame_names = (0..frames.len())
        .map(|frame| {
            let name = u32::try_from(frame).map_or("", |frame| frames.name(frame));
            *index.entry(name).or_insert_with(|| {
                names.push(name.to_owned());
                names.len() - 1
            })
        })
        .collect();
    (names, frame_names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{FunctionInfo, ProfileBuilder};
    use crate::tables::tests::small_profile;

    fn lines(node: &FlameNode, depth: usize, out: &mut Vec<String>) {
        let indent = "  ".repeat(depth);
        out.push(format!("{indent}{} {} {}", node.name, node.self_value, node.total_value));
        node.children.iter().for_each(|child| lines(child, depth + 1, out));
    }

    fn check(root: &FlameNode, expected: &[&str]) {
        let mut out = Vec::new();
        lines(root, 0, &mut out);
        assert_eq!(out, expected);
    }

    /// A stack of `depth` calls of one function, below which one other is the leaf.
    fn deep(depth: usize) -> Profile {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        let mut location = |name| {
            let info = FunctionInfo { name, ..FunctionInfo::default() };
            let function = builder.function(info);
            builder.location(None, 1, &[(function, 1)])
        };
        let (leaf, visit) = (location("leaf"), location("visit"));
        let stack: Vec<_> = std::iter::once(leaf).chain(vec![visit; depth]).collect();
        builder.sample(&stack, &[2], &[]);
        builder.finish()
    }

    #[test]
    fn stacks_share_what_they_have_in_common() {
        let tree = flame(&small_profile(), 1);
        assert_eq!((tree.sample_type.as_str(), tree.unit.as_str()), ("cpu", "nanoseconds"));
        check(
            &tree.root,
            &[
                "total 0 60",
                "  main 0 60",
                "    serve 10 40",
                "      parse 0 30",
                "        token 30 30",
                "    [libc.so.6] 20 20",
            ],
        );
    }

    #[test]
    fn hostile_depth_ends_in_one_frame_for_the_rest() {
        let tree = flame(&deep(100_000), 0);
        let mut node = &tree.root;
        let mut depth = 0;
        while let Some(child) = node.children.first() {
            (node, depth) = (child, depth + 1);
        }
        assert_eq!((node.name.as_str(), node.self_value, depth), (DEEPER, 2, MAX_DEPTH));
        assert_eq!(tree.root.total_value, 2);
        // Serialising and cloning recurse; the bound is there for them.
        assert!(serde_json::to_string(&tree.clone()).unwrap().contains(DEEPER));
    }

    #[test]
    fn stacks_of_exactly_the_maximum_depth_are_whole() {
        let mut node = flame(&deep(MAX_DEPTH - 1), 0).root;
        while let Some(child) = node.children.pop() {
            node = child;
        }
        assert_eq!(node.name, "leaf");
    }

    #[test]
    fn smallest_nodes_become_other_and_nothing_is_lost() {
        let mut arena = Arena::new(&small_profile(), 1, MAX_NODES);
        check(
            &arena.prune(3).tree(),
            &[
                "total 0 60",
                "  main 0 60",
                "    serve 10 40",
                "      [other] 30 30",
                "    [other] 20 20",
            ],
        );
        let mut arena = Arena::new(&small_profile(), 1, MAX_NODES);
        check(&arena.prune(1).tree(), &["total 0 60", "  [other] 60 60"]);
    }

    #[test]
    fn tree_that_is_too_large_to_build_is_bounded_and_nothing_is_lost() {
        let mut arena = Arena::new(&small_profile(), 1, 4);
        let expected = [
            "total 0 60",
            "  main 0 60",
            "    serve 10 40",
            "      parse 0 30",
            "        [other] 30 30",
            "    [other] 20 20",
        ];
        check(&arena.tree(), &expected);
        check(
            &arena.prune(3).tree(),
            &[
                "total 0 60",
                "  main 0 60",
                "    serve 10 40",
                "      [other] 30 30",
                "    [other] 20 20",
            ],
        );
    }

    #[test]
    fn siblings_that_are_too_small_become_one() {
        let mut builder = ProfileBuilder::new(&[("samples", "count")], "");
        for (name, value) in [("large", 9), ("small", 1), ("smaller", 2)] {
            let function = builder.function(FunctionInfo {
                name,
                system_name: "",
                filename: "",
                start_line: 0,
            });
            let location = builder.location(None, 0, &[(function, 0)]);
            builder.sample(&[location], &[value], &[]);
        }
        let mut arena = Arena::new(&builder.finish(), 0, MAX_NODES);
        check(&arena.prune(2).tree(), &["total 0 12", "  large 9 9", "  [other] 3 3"]);
    }

    #[test]
    fn empty_profile_is_an_empty_tree() {
        check(&flame(&Profile::default(), 0).root, &["total 0 0"]);
    }
}
