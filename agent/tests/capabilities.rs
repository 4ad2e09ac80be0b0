//! `everflame-agent capabilities` on the machine that the tests run on, whatever it may do
//! there.
#![expect(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::process::{Command, Output};

fn capabilities(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_everflame-agent"))
        .arg("capabilities")
        .args(arguments)
        .output()
        .unwrap()
}

/// Whether something required is not there, by the report.
fn lacks_required(lines: &serde_json::Value) -> bool {
    let lines = lines.as_array().unwrap();
    assert!(!lines.is_empty());
    lines.iter().any(|line| line["required"] == true && line["state"] == "absent")
}

#[test]
fn exit_code_says_what_the_report_says() {
    let output = capabilities(&["--format", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = if lacks_required(&report["rights"]) {
        77
    } else if lacks_required(&report["kernel"]["features"]) {
        69
    } else {
        0
    };
    assert_eq!(output.status.code(), Some(expected), "{report:#}");
}

#[test]
fn text_has_a_line_for_each_right_and_feature() {
    let output = capabilities(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    for name in ["CAP_BPF ", "CAP_SYSLOG ", "ring buffers ", "bpf_loop ", "unwinder "] {
        let lines = text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(lines, 1, "`{name}` in:\n{text}");
    }
    assert_eq!(output.stderr, b"");
}
