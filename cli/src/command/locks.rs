//! `everflame locks`: which locks threads wait for, who waits, and who held them.
//!
//! The report itself is [`everflame_profile::locks`]; here is where its profile comes from (this
//! host, a collector, or files), and how it looks on a terminal.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use everflame_profile::{Kind, LockReport, LockTotals, locks};

use super::record::{Request, capture};
use super::{json, limit, more, range};
use crate::args::{LocksArgs, RangeArgs};
use crate::collector::{Collector, selection};
use crate::failure::Failure;
use crate::files;
use crate::format::Format;
use crate::output::Destination;
use crate::table::{Table, printable, terminal_width};
use crate::units::value;
use crate::when::now_unix_ns;

pub(crate) const FORMATS: &[Format] = &[Format::Table, Format::Json];

/// Locks that a table shows unless `--limit` says otherwise.
const DEFAULT_LIMIT: u32 = 10;
/// Stacks of each side that it shows of a lock.
const MAX_STACKS: usize = 3;
/// Functions that it shows of a stack.
const MAX_FUNCTIONS: usize = 6;
/// Names of threads.
const MAX_THREADS: usize = 3;

pub(crate) fn run(args: LocksArgs) -> Result<(), Failure> {
    let output = args.output.as_deref();
    let format = Format::choose(args.format, output, FORMATS)?;
    let destination = Destination::new(output, false)?;
    let limit = limit(args.limit.or((format == Format::Table).then_some(DEFAULT_LIMIT)), format);
    let width = terminal_width().filter(|_| output.is_none());
    let mut report = report(args)?;
    let is_empty = report.locks.is_empty();
    let hidden = report.locks.len().saturating_sub(limit);
    report.locks.truncate(limit);
    if format == Format::Json {
        destination.write(&json(&report))?;
    } else if !is_empty {
        destination.write(text(&report, hidden, width).as_bytes())?;
    }
    if is_empty {
        let message = "no thread waited for a lock".to_owned();
        return Err(Failure::NoData { message });
    }
    Ok(())
}

fn report(args: LocksArgs) -> Result<LockReport, Failure> {
    if !args.files.is_empty() {
        return Ok(locks(&files::read_all(&args.files)?));
    }
    if let Some(selector) = &args.selector {
        let range = range(&RangeArgs { from: args.from, to: args.to }, now_unix_ns())?;
        let mut collector = Collector::connect(&args.server)?;
        let selection = selection(Kind::Lock.name(), selector, range, None);
        return Ok(locks(&collector.merge(selection)?));
    }
    // The rate is that of CPU samples, of which there are none.
    let target = (args.pid, args.comm);
    let request = Request::new(Kind::Lock, 1, target, args.duration, args.command);
    let (recording, _) = capture(request)?;
    Ok(locks(&recording.profile))
}

fn text(report: &LockReport, hidden: usize, width: Option<usize>) -> String {
    let mut out = String::new();
    for (index, lock) in report.locks.iter().enumerate() {
        let _ = writeln!(out, "{}", headline(index + 1, lock));
        let mut table = Table::new(&["", "WAIT", "TIMES", "<THREADS", "<STACK"]);
        let ns = |ns| value(ns, "nanoseconds");
        let count = |count| value(count, "count");
        let mut row = |side: &str, wait, times, threads: &BTreeSet<String>, stack: &[String]| {
            table.row(vec![side.to_owned(), ns(wait), count(times), some_of(threads), path(stack)]);
        };
        for (index, waiter) in lock.waiters.iter().take(MAX_STACKS).enumerate() {
            let side = if index == 0 { "waiters" } else { "" };
            row(side, waiter.wait_ns, waiter.waits, &waiter.threads, &waiter.stack);
        }
        for (index, holder) in lock.holders.iter().take(MAX_STACKS).enumerate() {
            let side = if index == 0 { "holders" } else { "" };
            row(side, holder.hold_ns, holder.releases, &holder.threads, &holder.stack);
        }
        out.push_str(&table.render(width));
        out.push('\n');
    }
    out.push_str(&more(hidden));
    out
}

fn headline(rank: usize, lock: &LockTotals) -> String {
    let ns = |ns| value(ns, "nanoseconds");
    let name = match (&lock.address, &lock.symbol) {
        (Some(address), Some(symbol)) => format!("{symbol} at {address}"),
        (Some(address), None) => address.clone(),
        (None, symbol) => format!("wanted by {}", symbol.as_deref().unwrap_or("?")),
    };
    let process = match (&lock.comm, &lock.pid) {
        (Some(comm), Some(pid)) => format!(" in {comm} (pid {pid})"),
        (Some(who), None) | (None, Some(who)) => format!(" in {who}"),
        (None, None) => String::new(),
    };
    printable(&format!(
        "#{rank} {name}, {}{process}: {} in {} waits, p50 {}, p99 {}, max {}",
        lock.kind,
        ns(lock.wait_ns),
        value(lock.waits, "count"),
        ns(lock.p50_ns),
        ns(lock.p99_ns),
        ns(lock.max_ns)
    ))
}

/// The program's part of a stack, leaf first.
fn path(stack: &[String]) -> String {
    let is_entry = |name: &String| name.starts_with("entry_SYSCALL") || name == "el0_svc";
    let from = stack.iter().rposition(is_entry).map_or(0, |at| at + 1);
    let own = &stack[from..];
    let mut names: Vec<&str> = own.iter().take(MAX_FUNCTIONS).map(String::as_str).collect();
    if own.len() > MAX_FUNCTIONS {
        names.push("...");
    }
    names.join(" < ")
}

fn some_of(names: &BTreeSet<String>) -> String {
    let mut text =
        names.iter().take(MAX_THREADS).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > MAX_THREADS {
        let _ = write!(text, " +{}", names.len() - MAX_THREADS);
    }
    text
}

#[cfg(test)]
mod tests {
    use everflame_profile::{HolderTotals, WaiterTotals};

    use super::*;

    #[test]
    fn table_shows_lock_waiters_and_holders() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let threads = ["a", "b", "c", "d"].map(str::to_owned).into();
        let stack: &[&str] = &["futex_wait", "entry_SYSCALL_64_after_hwframe", "lock", "request"];
        let lock = LockTotals {
            address: Some("0x10".to_owned()),
            kind: "futex".to_owned(),
            pid: Some("7".to_owned()),
            comm: Some("server".to_owned()),
            wait_ns: 3_000_000_000,
            waits: 1200,
            p50_ns: 2_000_000,
            p99_ns: 9_000_000,
            max_ns: 20_000_000,
            waiters: vec![WaiterTotals { stack: names(stack), threads, wait_ns: 3, waits: 1 }],
            holders: vec![HolderTotals { stack: names(&["unlock", "slow"]), ..Default::default() }],
            ..LockTotals::default()
        };
        let symbol = Some("table_lock".to_owned());
        let named = LockTotals { symbol, waiters: Vec::new(), holders: Vec::new(), ..lock.clone() };
        let text = text(&LockReport { locks: vec![lock, named] }, 0, None);
        assert!(text.contains("#1 0x10, futex in server (pid 7): 3 s in 1,200 waits"), "{text}");
        assert!(text.contains("#2 table_lock at 0x10, futex in server (pid 7): 3 s"), "{text}");
        assert!(text.contains("a, b, c +1"), "{text}");
        assert!(text.contains("  lock < request\n"), "{text}");
        assert!(text.contains("unlock < slow\n"), "{text}");
    }
}
