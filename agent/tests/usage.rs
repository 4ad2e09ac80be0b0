//! Wrong usage of the program is named before anything is touched.
#![expect(clippy::expect_used, reason = "helpers of a test fail as the test does")]

use std::process::Command;

#[track_caller]
fn check(log: &str, arguments: &[&str], said: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_everflame-agent"))
        .args(arguments)
        .args(["--metrics", "off", "--spool-dir", "/nowhere/spool"])
        .env("EVERFLAME_LOG", log)
        .output()
        .expect("the program runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{stderr}");
    for text in said {
        assert!(stderr.contains(text), "`{text}` is not in: {stderr}");
    }
}

#[test]
fn wrong_usage_is_named() {
    check("info,x=loud", &[], &["EVERFLAME_LOG", "info,x=loud"]);
    check("", &["--server", "collector:4040"], &["--server", "http://HOST:4040"]);
    check("", &["--cpu-rate-hz", "0"], &["--cpu-rate-hz"]);
    check("", &["--label", "env=a", "--label", "env=b"], &["`env` is given twice"]);
    check("", &["--label", "host=a"], &["--host"]);
    check("", &["--kinds", "cpu,disk"], &["disk", "offcpu"]);
}
