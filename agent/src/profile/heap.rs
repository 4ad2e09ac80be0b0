//! Profiles of kind `alloc`, mode `live`: what a process has allocated and what it holds, as Go's runtime
//! says it of its own heap.
//!
//! - `alloc_*` is what was allocated in the window;
//! - `inuse_*` is what is there at its end, whenever it was allocated.
//!
//! A profile of its own, with `mode` as a label, as growth of the same process's memory has the same
//! sample types and is something else.

use everflame_profile::LabelValue;
use everflame_profile::kind::Kind as ProfileKind;

use super::{Assembly, ProcessProfile, Symbols, WindowTime, labels};
use crate::aggregate::{HeapTotals, ProcessWindow, Window};

/// What is shown unless somebody asks for something else.
const SHOWN: &str = "inuse_space";

/// The profile of a process, if anything is known of its heap.
pub(super) fn profile(
    process: &ProcessWindow,
    window: &Window,
    symbols: &Symbols,
    time: WindowTime,
) -> Option<ProcessProfile> {
    if process.heap.is_empty() {
        return None;
    }
    let kind = ProfileKind::Alloc;
    let mut assembly = Assembly::showing(SHOWN, kind, &window.ranges, symbols, time);
    let period_bytes = i64::try_from(process.heap_period_bytes).unwrap_or(i64::MAX);
    assembly.builder.set_period(SHOWN, "bytes", period_bytes);
    assembly.main_executable(process);
    for (stack, totals) in &process.heap {
        let stack: Vec<_> = stack.iter().map(|&frame| assembly.user_location(frame)).collect();
        let mut labels = vec![("mode", LabelValue::Str("live"))];
        labels.extend(process.allocator.map(|of| ("allocator", LabelValue::Str(of.name()))));
        if totals.oldest_ns > 0 && time.has_ages {
            let oldest_ns = i64::try_from(totals.oldest_ns).unwrap_or(i64::MAX);
            labels.push(("oldest", LabelValue::Num(oldest_ns, "nanoseconds")));
        }
        assembly.builder.sample(&stack, &values(totals), &labels);
    }
    let mut labels = labels(process);
    labels.push(("mode".to_owned(), "live".to_owned()));
    labels.sort();
    Some(ProcessProfile { kind, labels, profile: assembly.builder.finish() })
}

/// In the order of the sample types.
fn values(totals: &HeapTotals) -> [i64; 4] {
    let HeapTotals { objects, bytes, held_objects, held_bytes, .. } = *totals;
    [objects, bytes, held_objects, held_bytes].map(|sum| sum.round() as i64)
}
