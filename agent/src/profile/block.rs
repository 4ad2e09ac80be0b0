//! `block`: requests to disks by the code that made them, and how long it takes to make files durable.
//!
//! The two are profiles of their own, with `event` as a label, as what a program waits for when it makes a
//! file durable are requests, mostly.

use std::sync::Arc;

use everflame_profile::LabelValue;
use everflame_profile::block::{
    DEVICE, DEVICE_TIME, EVENT, Event, FAILED, OPERATION, QUEUE_TIME, SYNC, WRITEBACK,
};
use everflame_profile::kind::Kind as ProfileKind;

use super::{Assembly, ProcessProfile, Symbols, WindowTime, labels};
use crate::aggregate::{BlockKey, BlockTotals, IoKey, ProcessWindow, StackKey, Window};

/// The profiles of a process, one for each event with something in it.
pub(super) fn profiles(
    process: &ProcessWindow,
    window: &Window,
    symbols: &Symbols,
    time: WindowTime,
) -> impl Iterator<Item = ProcessProfile> {
    let of = |event: Event| {
        let is_it = move |key: &StackKey| matches!(key.io, Some(IoKey::Block(block)) if block.operation.is_none() == (event == Event::Sync));
        let requests: Vec<(&Arc<StackKey>, &BlockTotals)> =
            process.blocks.iter().filter(|(key, _)| is_it(key)).collect();
        (event, requests)
    };
    [of(Event::Request), of(Event::Sync)]
        .into_iter()
        .filter(|(_, requests)| !requests.is_empty())
        .map(move |(event, requests)| {
            let kind = ProfileKind::Block;
            let mut assembly = Assembly::new(kind, &window.ranges, symbols, time);
            assembly.main_executable(process);
            for (key, totals) in requests {
                assembly.request(event, key, *totals, process.identity.is_kernel_thread);
            }
            let mut labels = labels(process);
            labels.push((EVENT.to_owned(), event.name().to_owned()));
            labels.sort();
            ProcessProfile { kind, labels, profile: assembly.builder.finish() }
        })
}

impl Assembly<'_> {
    fn request(
        &mut self,
        event: Event,
        key: &StackKey,
        totals: BlockTotals,
        is_kernel_thread: bool,
    ) {
        let Some(IoKey::Block(block)) = key.io else { return };
        let stack = self.stack(key);
        let thread = key.thread_name.to_string_lossy();
        let device = block.disk.to_string();
        let mut labels = vec![
            (EVENT, LabelValue::Str(event.name())),
            (DEVICE, LabelValue::Str(&device)),
            ("tid", LabelValue::Num(i64::from(key.tid), "")),
            ("thread", LabelValue::Str(&thread)),
            (DEVICE_TIME, LabelValue::Num(signed(block.device), "nanoseconds")),
        ];
        if let Some(operation) = block.operation {
            labels.push((OPERATION, LabelValue::Str(operation.name())));
            labels.push((SYNC, LabelValue::Str(if block.is_sync { "true" } else { "false" })));
            labels.push((QUEUE_TIME, LabelValue::Num(signed(block.queue), "nanoseconds")));
        }
        if block.has_failed {
            labels.push((FAILED, LabelValue::Str("true")));
        }
        if is_kernel_thread && is_writeback(&block, &self.kernel_names(key)) {
            labels.push((WRITEBACK, LabelValue::Str("true")));
        }
        let BlockTotals { operations, bytes, queue_ns, device_ns } = totals;
        let values = [operations, bytes, queue_ns, device_ns].map(signed);
        self.builder.sample(&stack, &values, &labels);
    }
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Functions of the kernel that write what others have written to files: the flusher of each disk, and
/// what frees memory.
const WRITEBACK_FUNCTIONS: [&str; 3] = ["wb_workfn", "wb_writeback", "pageout"];

/// Whether a thread of the kernel writes what some process has written to a file before. Which one that was, the
/// request does not tell.
fn is_writeback(block: &BlockKey, kernel: &[&str]) -> bool {
    use everflame_agent_common::block::Operation;
    let is_write = block.operation == Some(Operation::Write);
    let has_names = kernel.iter().any(|name| !name.is_empty());
    // Without names of functions: nobody waits for what is written back.
    is_write
        && if has_names {
            kernel.iter().any(|name| WRITEBACK_FUNCTIONS.contains(name))
        } else {
            !block.is_sync
        }
}
