//! `everflame io`: what processes want of disks, how long that takes, and which code it is.
//!
//! The report itself is [`everflame_profile::io`](mod@everflame_profile::io); here is how it looks on a terminal.

use std::fmt::Write as _;

use everflame_profile::{IoReport, IoTotals, Kind, Latency, io};

use super::more;
use super::report::{View, code, process, profile};
use crate::args::IoArgs;
use crate::failure::Failure;
use crate::table::{Table, printable};
use crate::units::{rate, value};

/// Stacks that a table shows of a row.
const MAX_STACKS: usize = 3;
/// The longest bar of a histogram, in characters.
const BAR: i64 = 40;

pub(crate) fn run(args: IoArgs) -> Result<(), Failure> {
    let view = View::new(&args.report)?;
    let mut report = io(&profile(args.report, Kind::Block)?);
    let is_empty = report.operations.is_empty();
    let hidden = view.cut(&mut report.operations);
    view.show(&report, is_empty, |width| text(&report, hidden, width), "nothing was done to disks")
}

fn text(report: &IoReport, hidden: usize, width: Option<usize>) -> String {
    let mut out = String::new();
    for (index, totals) in report.operations.iter().enumerate() {
        let _ = writeln!(out, "{}", headline(index + 1, totals));
        let mut table = Table::new(&["", "P50", "P90", "P99", "MAX", "TOTAL"]);
        let mut row = |name: &str, latency: &Latency| {
            let Latency { total_ns, p50_ns, p90_ns, p99_ns, max_ns } = *latency;
            let cells = [p50_ns, p90_ns, p99_ns, max_ns, total_ns];
            let cells = cells.map(|ns| value(ns, "nanoseconds"));
            table.row(std::iter::once(name.to_owned()).chain(cells).collect());
        };
        if totals.operation != "sync" {
            row("queue", &totals.queue);
        }
        row("device", &totals.device_time);
        out.push_str(&table.render(width));
        out.push_str(&histogram(totals));
        let mut table = Table::new(&["OPS", "TIME", "<STACK"]);
        for stack in totals.stacks.iter().take(MAX_STACKS) {
            let took = stack.queue_ns.saturating_add(stack.device_ns);
            let time = value(took, "nanoseconds");
            table.row(vec![value(stack.ops, "count"), time, code(&stack.stack)]);
        }
        out.push_str(&table.render(width));
        out.push('\n');
    }
    out.push_str(&more(hidden));
    out
}

fn headline(rank: usize, totals: &IoTotals) -> String {
    let IoTotals { device, operation, .. } = totals;
    let writeback = if totals.writeback { " (writeback)" } else { "" };
    let process = process(totals.comm.as_deref(), totals.pid.as_deref())
        .map_or_else(String::new, |process| format!(" by {process}"));
    let failed =
        if totals.failed > 0 { format!(", {} failed", totals.failed) } else { String::new() };
    let bytes = if totals.bytes > 0 {
        format!(", {} ({})", value(totals.bytes, "bytes"), rate(totals.bytes_per_second, "bytes"))
    } else {
        String::new()
    };
    printable(&format!(
        "#{rank} {device} {operation}{writeback}{process}: {} ops ({}){bytes}{failed}",
        value(totals.ops, "count"),
        rate(totals.ops_per_second, "count"),
    ))
}

/// Bars of how many took how long at the disk, in powers of two.
fn histogram(totals: &IoTotals) -> String {
    let most = totals.histogram.iter().map(|bucket| bucket.ops).max().unwrap_or(0).max(1);
    let mut table = Table::new(&["FROM", "OPS", "<"]);
    for bucket in &totals.histogram {
        // Whatever is there is seen.
        let length = bucket.ops.saturating_mul(BAR) / most;
        let bar = "#".repeat(usize::try_from(length.max(1)).unwrap_or(1));
        let from = value(bucket.from_ns, "nanoseconds");
        table.row(vec![from, value(bucket.ops, "count"), bar]);
    }
    table.render(None)
}

#[cfg(test)]
mod tests {
    use everflame_profile::{IoBucket, IoStack};

    use super::*;

    #[test]
    fn table_shows_process_latencies_histogram_and_stacks() {
        let stack = ["submit_bio", "entry_SYSCALL_64_after_hwframe", "pread64", "load"];
        let totals = IoTotals {
            device: "vda".to_owned(),
            operation: "read".to_owned(),
            comm: Some("db".to_owned()),
            pid: Some("7".to_owned()),
            ops: 1000,
            ops_per_second: 100.0,
            bytes: 4_096_000,
            bytes_per_second: 409_600.0,
            device_time: Latency { p50_ns: 100_000, max_ns: 2_000_000, ..Latency::default() },
            histogram: vec![
                IoBucket { from_ns: 65_536, ops: 999 },
                IoBucket { from_ns: 1_048_576, ops: 1 },
            ],
            stacks: vec![IoStack {
                stack: stack.map(str::to_owned).to_vec(),
                ops: 1000,
                ..IoStack::default()
            }],
            ..IoTotals::default()
        };
        let text = text(&IoReport { seconds: 10.0, operations: vec![totals] }, 0, None);
        assert!(
            text.starts_with("#1 vda read by db (pid 7): 1,000 ops (100/s), 3.91 MiB"),
            "{text}"
        );
        assert!(text.contains(&"#".repeat(40)), "{text}");
        assert!(text.contains("  pread64 < load\n"), "{text}");
    }
}
