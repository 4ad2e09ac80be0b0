//! Stacks that cannot be walked: the walk ends, the leaf is kept, the reason is counted.

use std::process::{Command, Stdio};

use everflame_tests::profile::{Sample, total};
use everflame_tests::program::{Agent, Running, Server, http_get, wait_for};
use everflame_tests::workload::workload;
use tempfile::TempDir;

use super::{brief, record_workload};
use crate::say;
use crate::take_turn;

/// What `unmap_stack` can do, the function that it spends its time in, and the reasons for the
/// walk's end that can be counted.
const WAYS: [(&str, &str, &[&str]); 5] = [
    ("caller", "burn", &["unreadable"]),
    ("outer", "burn", &["unreadable"]),
    ("flicker", "burn", &["unreadable"]),
    // What lies just before its return address has another description, which leads nowhere.
    ("cycle", "cycle", &["broken_chain", "unmapped"]),
    ("wild", "wild", &["unreadable", "broken_chain"]),
];

#[test]
fn stack_that_is_not_there_ends_the_walk_and_is_counted() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let arguments = ["--window", "1s", "--cpu-rate-hz", "97"];
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    for (way, _, reasons) in WAYS {
        let counted = |agent: &Agent| -> f64 {
            let of = |reason: &&str| {
                let labels = [("reason", *reason), ("side", "user")];
                agent.metric_with("everflame_agent_truncated_stacks_total", &labels)
            };
            reasons.iter().map(of).sum()
        };
        let before = counted(&agent);
        let mut program = Command::new(workload("unmap_stack"));
        program.args([way, "2"]).stdout(Stdio::null());
        assert!(Running::start(&mut program).wait().success());
        // Two seconds at 97 Hz; others may take most of the CPUs.
        wait_for(way, || counted(&agent) > before + 20.0);
    }
    let (status, _) = http_get(&agent.metrics_address, "/healthz");
    assert_eq!(status, 200);
    assert!(agent.process.terminate().success(), "{}", agent.process.log());
}

#[test]
fn stack_that_is_not_there_keeps_its_leaf() {
    let Some(_turn) = take_turn() else { return };
    for (way, function, _) in WAYS {
        let samples = record_workload(&workload("unmap_stack"), &[way, "2"]);
        let (with, without): (Vec<&Sample>, Vec<&Sample>) =
            samples.iter().partition(|sample| sample.has(function));
        // `wild` has no stack to speak of, the others have been called by somebody.
        let deepest = with.iter().map(|sample| sample.stack.len()).max().unwrap_or(0);
        let (with, without) = (total(with), total(without));
        say(&format!(
            "{way}: {with} of {} in {function}, at most {deepest} frames",
            with + without
        ));
        // The other thread of `flicker` does nothing but system calls.
        let enough = if way == "flicker" { 0.2 } else { 0.8 };
        assert!(with as f64 > enough * (with + without) as f64 && with > 200, "{way}: {with}");
        let caller = samples.iter().find(|sample| sample.has("without_caller"));
        assert!(way != "caller" || caller.is_some());
        if let Some(sample) = caller {
            assert!(
                sample.stack.iter().any(|name| name == "call_on_stack"),
                "{}",
                brief(&sample.stack)
            );
        }
    }
}
