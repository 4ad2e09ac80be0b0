//! `everflame locks`: which locks threads wait for, who waits, and who held them.
//!
//! The report itself is [`everflame_profile::locks`]; here is how it looks on a terminal.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use everflame_profile::{Kind, LockReport, LockTotals, locks};

use super::more;
use super::report::{View, path, profile};
use crate::args::LocksArgs;
use crate::failure::Failure;
use crate::table::{Table, printable};
use crate::units::value;

/// Stacks of each side that it shows of a lock.
const MAX_STACKS: usize = 3;
/// Names of threads.
const MAX_THREADS: usize = 3;

pub(crate) fn run(args: LocksArgs) -> Result<(), Failure> {
    let view = View::new(&args.report)?;
    let mut report = locks(&profile(args.report, Kind::Lock)?);
    let is_empty = report.locks.is_empty();
    let hidden = view.cut(&mut report.locks);
    view.show(
        &report,
        is_empty,
        |width| text(&report, hidden, width),
        "no thread waited for a lock",
    )
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
