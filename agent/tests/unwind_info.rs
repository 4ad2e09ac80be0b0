//! `everflame-agent unwind-info` tells of files what there is to tell, and why there is nothing.
#![expect(clippy::expect_used, reason = "helpers of a test fail as the test does")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everflame-agent"));
    command.arg("unwind-info").args(arguments).output().expect("the program runs")
}

#[track_caller]
fn stdout(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout).expect("text")
}

/// A file of which is known what it is made of: `fuzz/seeds/odd.S`.
fn known(name: &str) -> String {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/compile");
    seeds.join(name).display().to_string()
}

#[test]
fn any_program_has_statistics_and_rows() {
    for file in ["/bin/true", env!("CARGO_BIN_EXE_everflame-agent")] {
        let text = stdout(&[file]);
        for expected in ["machine", "rules from", "bytes a row", "frame by register", "cfa="] {
            assert!(text.contains(expected), "`{expected}` is not in: {text}");
        }
        assert!(text.contains("show them with --rows"), "{text}");
    }
}

#[test]
fn rows_are_told_in_words() {
    let text = stdout(&[&known("static"), "--rows"]);
    for expected in [
        "rules from .eh_frame\n",
        "  end of stack\n",
        "  signal frame\n",
        "cfa=rsp+8 (+8 from byte 11 of 16)  ra=[cfa-8]\n",
        "cfa=[rbp-8]  rbp=[rbp]  ra=[cfa-8]\n",
    ] {
        assert!(text.contains(expected), "`{expected}` is not in: {text}");
    }
    assert!(!text.contains("more; show them"), "{text}");
    let text = stdout(&[&known("arm-static"), "--rows"]);
    assert!(text.contains("aarch64") && text.contains("cfa=sp  ra=lr\n"), "{text}");
    let text = stdout(&[&known("debug-frame")]);
    assert!(text.contains("rules from .debug_frame\n"), "{text}");
}

#[test]
fn file_without_information_follows_frame_pointers() {
    let text = stdout(&[&known("nothing")]);
    assert!(text.contains("no call frame information. Frame pointers are followed"), "{text}");
    let text = stdout(&[&known("go")]);
    assert!(text.contains("frame pointers where it says nothing (Go)"), "{text}");
}

#[test]
fn one_function_or_address_can_be_picked() {
    // The C library exports this one on all machines.
    let libc = libc_path();
    let libc = libc.to_str().expect("text");
    let text = stdout(&[libc, "--function", "qsort"]);
    assert!(text.contains("qsort:\n"), "{text}");
    let first = text.lines().skip_while(|line| *line != "qsort:").nth(1).expect("a row");
    let address = first.split_whitespace().next().expect("an address");
    let text = stdout(&[libc, "--address", address]);
    let marked: Vec<&str> = text.lines().filter(|line| line.starts_with('>')).collect();
    assert_eq!(marked.len(), 1, "{text}");
}

/// The one that this test runs with.
fn libc_path() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc is mounted");
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    path.map(PathBuf::from)
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc.so"))
        })
        .expect("the test is linked dynamically")
}

#[test]
fn json_has_the_same() {
    let json = stdout(&[&known("static"), "--format", "json", "--rows"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["source"], ".eh_frame");
    assert_eq!(json["machine"], "x86_64");
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(json["table"]["rows"], rows.len());
    assert!(rows.iter().any(|row| row["rule"] == "signal frame"), "{json}");
    let code = json["code"].as_array().expect("shares");
    let percent: f64 = code.iter().filter_map(|share| share["code_percent"].as_f64()).sum();
    assert!((percent - 100.0).abs() < 0.01, "{json}");
}

#[track_caller]
fn check_refused(arguments: &[&str], code: i32, said: &str) {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(said), "`{said}` is not in: {stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_cannot_be_shown_is_said() {
    check_refused(&["/nonexistent"], 66, "cannot read /nonexistent: No such file");
    check_refused(&["/"], 66, "/ is not a file");
    check_refused(&["/dev/null"], 66, "/dev/null is not a file");
    check_refused(&["/etc/passwd"], 65, "not a 64-bit little-endian ELF file");
    check_refused(&[&known("torn-headers")], 65, "has the file been truncated?");
    check_refused(&["/bin/true", "--function", "nope"], 65, "no function `nope`");
    check_refused(&["/bin/true", "--address", "0xffffffff"], 65, "no executable part");
    check_refused(&["/bin/true", "--address", "main"], 64, "looks like 0x401136");
    check_refused(&["/bin/true", "--rows", "--address", "1"], 64, "cannot be used with");
}
