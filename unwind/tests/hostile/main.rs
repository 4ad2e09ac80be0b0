//! Files that lie: no panic, bounded time and memory, an error with a name or a count.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod changing;
mod file;
mod headers;
mod programs;
mod sizes;

use std::time::{Duration, Instant};

use everflame_unwind::{CompileError, InWords, Limits, Table, compile};

/// Compiles, which must not take long however hostile the file is.
fn compile_quickly(file: &[u8], limits: &Limits) -> Result<Table, CompileError> {
    let started = Instant::now();
    let compiled = compile(&file, limits);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    compiled
}

/// The rule at an offset in `.text`, in words.
fn rule_at(table: &Table, offset: u64) -> String {
    InWords { rule: table.rule_at(file::TEXT + offset), arch: table.arch }.to_string()
}

fn check_rules(table: &Table, expected: &[(u64, &str)]) {
    for (offset, words) in expected {
        assert_eq!(rule_at(table, *offset), *words, "at {offset:#x}");
    }
}
