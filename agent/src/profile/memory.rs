//! `alloc`: what makes processes grow, and what they ask their allocators for, as Go's runtime writes heap
//! profiles.

use everflame_agent_common::event::Kind;
use everflame_profile::LabelValue;
use everflame_profile::kind::Kind as ProfileKind;

use super::{Assembly, ProcessProfile, Symbols, WindowTime, labels};
use crate::aggregate::{ProcessWindow, StackKey, Window};
use crate::collect::AllocMode;

/// The profile of a process, of both modes; `None` if there is nothing in it.
pub(super) fn profile(
    process: &ProcessWindow,
    window: &Window,
    symbols: &Symbols,
    time: WindowTime,
) -> Option<ProcessProfile> {
    let grown = || process.stacks.iter().filter(|(key, _)| key.kind == Kind::Growth);
    if grown().next().is_none() && process.allocations.is_empty() {
        return None;
    }
    let kind = ProfileKind::Alloc;
    let mut assembly = Assembly::new(kind, &window.ranges, symbols, time);
    assembly.main_executable(process);
    for (key, totals) in grown() {
        let [count, value] =
            [totals.count, totals.value].map(|value| i64::try_from(value).unwrap_or(i64::MAX));
        assembly.add_memory(key, [count, value]);
    }
    for (key, allocated) in &process.allocations {
        assembly.add_memory(key, [allocated.objects, allocated.bytes].map(rounded));
    }
    Some(ProcessProfile { kind, labels: labels(process), profile: assembly.builder.finish() })
}

fn rounded(value: f64) -> i64 {
    // Saturates.
    value.round() as i64
}

impl Assembly<'_> {
    /// Adds objects and bytes that a process has got. What of them is given back is not known.
    fn add_memory(&mut self, key: &StackKey, [objects, bytes]: [i64; 2]) {
        let stack = self.stack(key);
        let thread = key.thread_name.to_string_lossy();
        let mut labels = Vec::with_capacity(4);
        // What a process had grown by in all is not told apart by threads.
        if key.tid != 0 {
            labels.push(("tid", LabelValue::Num(i64::from(key.tid), "")));
            labels.push(("thread", LabelValue::Str(&thread)));
        }
        if let Some(memory) = key.memory {
            labels.push(("mode", LabelValue::Str(AllocMode::Faults.name())));
            labels.push(("memory", LabelValue::Str(memory.name())));
        }
        if let Some(allocator) = key.allocator {
            labels.push(("mode", LabelValue::Str(AllocMode::Window.name())));
            labels.push(("allocator", LabelValue::Str(allocator.name())));
        }
        self.builder.sample(&stack, &[objects, bytes, 0, 0], &labels);
    }
}
