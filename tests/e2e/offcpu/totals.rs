//! Time on a CPU, waits and run-queue delay of each thread add up to the time that passed.

use std::path::Path;
use std::time::Duration;

use everflame_tests::totals;

use super::Findings;
use crate::say;
use crate::take_turn;

/// `cargo xtask bench offcpu` does it for a minute.
const SPAN: Duration = Duration::from_secs(20);

#[test]
fn totals_agree() {
    let Some(_turn) = take_turn() else { return };
    let (threads, lost) = totals::measure(SPAN, Path::new(env!("CARGO_TARGET_TMPDIR")));
    let mut findings = Findings::new();
    findings.note(lost == 0.0, format!("{lost} samples lost"));
    let named = |name: &str| threads.iter().find(|totals| totals.thread.name == name).unwrap();
    for totals in &threads {
        findings.note(totals.is_met(), totals.to_string());
    }
    // It was about all of it: a thread that computes, one that waits, and what is between.
    let share = |name: &str, ns: fn(&totals::Totals) -> f64| {
        ns(named(name)) / named(name).thread.wall_ns as f64
    };
    assert!(share("sleeper", |totals| totals.waits_ns) > 0.9);
    assert!(share("busy", |totals| totals.waits_ns) < 0.02);
    assert!(share("busy", |totals| totals.on_cpu_ns) > 0.1);
    assert!((0.1..0.9).contains(&share("half_busy", |totals| totals.waits_ns)));
    say(&format!("{} threads", threads.len()));
}
