//! `alloc`: what makes processes grow, and what they ask their allocators for, as Go's runtime writes heap
//! profiles.

use everflame_agent_common::event::Kind;
use everflame_profile::LabelValue;
use everflame_profile::kind::Kind as ProfileKind;

use super::{Assembly, ProcessProfile, Symbols, WindowTime, labels};
use crate::aggregate::{ProcessWindow, StackKey, Window};
use crate::collect::AllocMode;

/// The profiles of a process, one for each mode with something in it. They are apart, with `mode` as a label, as
/// both have the same sample types and are not to be added up: memory that is asked for is mostly what a process
/// grows by.
pub(super) fn profiles(
    process: &ProcessWindow,
    window: &Window,
    symbols: &Symbols,
    time: WindowTime,
) -> impl Iterator<Item = ProcessProfile> {
    let grown = process
        .stacks
        .iter()
        .filter(|(key, _)| key.kind == Kind::Growth)
        .map(|(key, totals)| (key, [totals.count, totals.value].map(saturated)));
    let asked = process
        .allocations
        .iter()
        .map(|(key, allocated)| (key, [allocated.objects, allocated.bytes].map(rounded)));
    let grown: Vec<_> = grown.collect();
    let asked: Vec<_> = asked.collect();
    [(AllocMode::Faults, grown), (AllocMode::Window, asked)]
        .into_iter()
        .filter(|(_, samples)| !samples.is_empty())
        .map(move |(mode, samples)| {
            let kind = ProfileKind::Alloc;
            let mut assembly = Assembly::new(kind, &window.ranges, symbols, time);
            assembly.main_executable(process);
            for (key, values) in samples {
                assembly.add_memory(mode, key, values);
            }
            let mut labels = labels(process);
            labels.push(("mode".to_owned(), mode.name().to_owned()));
            labels.sort();
            ProcessProfile { kind, labels, profile: assembly.builder.finish() }
        })
}

fn saturated(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn rounded(value: f64) -> i64 {
    // Saturates.
    value.round() as i64
}

impl Assembly<'_> {
    /// Adds objects and bytes that a process has got. What of them is given back is not known.
    fn add_memory(&mut self, mode: AllocMode, key: &StackKey, [objects, bytes]: [i64; 2]) {
        let stack = self.stack(key);
        let thread = key.thread_name.to_string_lossy();
        let mut labels = vec![("mode", LabelValue::Str(mode.name()))];
        // What a process had grown by in all is not told apart by threads.
        if key.tid != 0 {
            labels.push(("tid", LabelValue::Num(i64::from(key.tid), "")));
            labels.push(("thread", LabelValue::Str(&thread)));
        }
        if let Some(memory) = key.memory {
            labels.push(("memory", LabelValue::Str(memory.name())));
        }
        if let Some(allocator) = key.allocator {
            labels.push(("allocator", LabelValue::Str(allocator.name())));
        }
        self.builder.sample(&stack, &[objects, bytes, 0, 0], &labels);
    }
}
