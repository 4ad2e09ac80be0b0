//! What people and scripts see of the command line: help, tables, forms of output, exit
//! codes and messages. Run with UPDATE_GOLDEN=1 to rewrite the files in `golden/` after a
//! change that is meant, and review the difference.
#![expect(clippy::unwrap_used, reason = "a test")]

mod everflame;
mod golden;

use std::path::PathBuf;
use std::process::Command;

use everflame_profile::{FunctionInfo, LabelValue, MappingInfo, ProfileBuilder, encode_gz, pprof};

use crate::everflame::{Outcome, everflame, everflame_with_stdin, start};
use crate::golden::golden;

/// A directory with two profiles: `before.pb.gz` of 10 s and `after.pb.gz` of 20 s.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        let before = [("parse", 4_000), ("render", 3_000), ("old", 1_000)];
        let after = [("parse", 12_000), ("render", 5_000), ("new\x1b[2J", 1_000)];
        std::fs::write(dir.path("before.pb.gz"), encode_gz(&profile(10, &before))).unwrap();
        std::fs::write(dir.path("after.pb.gz"), encode_gz(&profile(20, &after))).unwrap();
        std::fs::write(dir.path("empty.pb.gz"), encode_gz(&profile(1, &[]))).unwrap();
        dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs everflame in this directory.
    fn run(&self, arguments: &str) -> Outcome {
        everflame(self.0.path(), arguments)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

/// Milliseconds of CPU that leaves below `main` used.
fn profile(duration_s: i64, leaves: &[(&str, i64)]) -> pprof::Profile {
    let mut builder = ProfileBuilder::new(&[("samples", "count"), ("cpu", "nanoseconds")], "cpu");
    builder.set_period("cpu", "nanoseconds", 10_000_000);
    builder.set_time(1_700_000_000_000_000_000, duration_s * 1_000_000_000);
    let api = builder.mapping(MappingInfo {
        memory_start: 0x1000,
        memory_limit: 0x9000,
        file_offset: 0x1000,
        filename: "/srv/api",
        build_id: "0123abcd",
    });
    let mut function = |name| {
        let filename = "/src/api/main.c";
        builder.function(FunctionInfo { name, system_name: name, filename, start_line: 1 })
    };
    let main = function("main");
    let functions: Vec<_> = leaves.iter().map(|(name, _)| function(name)).collect();
    let in_main = builder.location(Some(api), 0x1100, &[(main, 3)]);
    let nameless = builder.location(Some(api), 0x2a10, &[]);
    for (function, (_, cpu_ms)) in functions.into_iter().zip(leaves) {
        let leaf = builder.location(Some(api), 0x1200, &[(function, 7)]);
        let values = [cpu_ms / 10, cpu_ms * 1_000_000];
        builder.sample(&[leaf, in_main], &values, &[("comm", LabelValue::Str("api"))]);
    }
    if !leaves.is_empty() {
        builder.sample(&[nameless, in_main], &[200, 2_000_000_000], &[]);
    }
    builder.finish()
}

#[test]
fn help_of_every_command() {
    let dir = Dir::new();
    golden("help.txt", &dir.run("--help").success());
    for command in
        ["record", "locks", "io", "net", "leaks", "top", "flame", "diff", "services", "gate"]
    {
        golden(&format!("{command}-help.txt"), &dir.run(&format!("{command} --help")).success());
    }
}

#[test]
fn tables() {
    let dir = Dir::new();
    golden("top.txt", &dir.run("top before.pb.gz").success());
    golden("top-total.txt", &dir.run("top before.pb.gz --by total --limit 2").success());
    golden("top-samples.txt", &dir.run("top after.pb.gz --sample-type samples").success());
    golden("flame.txt", &dir.run("flame before.pb.gz --min-percent 15").success());
    golden("diff.txt", &dir.run("diff before.pb.gz after.pb.gz").success());
    golden("diff-total.txt", &dir.run("diff before.pb.gz after.pb.gz --by total").success());
}

#[test]
fn difference_is_a_picture_and_a_profile() {
    let dir = Dir::new();
    dir.run("diff before.pb.gz after.pb.gz -o diff.svg").success();
    let svg = dir.read("diff.svg");
    assert!(svg.contains("<svg") && svg.contains("parse") && svg.contains("difference"), "{svg}");
    dir.run("diff before.pb.gz after.pb.gz -o diff.pb.gz").success();
    // Seconds of each function, less the base's.
    let folded = dir.run("flame diff.pb.gz --format folded").success();
    let value = |name: &str| {
        let lines = folded.lines().filter(|line| line.contains(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap()).sum::<i64>()
    };
    assert_eq!(
        (value("parse"), value("render"), value("old")),
        (8_000_000_000, 2_000_000_000, -1_000_000_000)
    );
}

#[test]
fn json_is_the_table() {
    let dir = Dir::new();
    golden("top.json", &dir.run("top before.pb.gz --format json --limit 2").success());
    golden("diff.json", &dir.run("diff before.pb.gz after.pb.gz --format json").success());
    dir.run("flame before.pb.gz -o flame.json").success();
    golden("flame.json", &dir.read("flame.json"));
}

#[test]
fn flame_writes_what_the_extension_says() {
    let dir = Dir::new();
    dir.run("flame before.pb.gz -o out.folded").success();
    golden("flame.folded", &dir.read("out.folded"));
    dir.run("flame before.pb.gz -o out.svg").success();
    let svg = dir.read("out.svg");
    assert!(svg.contains("<svg") && svg.contains("parse (4,000 ms, 40.00%)"), "{svg}");
    dir.run("flame before.pb.gz -o out.pb.gz").success();
    let same = std::fs::read(dir.path("before.pb.gz")).unwrap();
    assert_eq!(std::fs::read(dir.path("out.pb.gz")).unwrap(), same);
}

#[test]
fn files_are_summed_and_stdin_is_a_file() {
    let dir = Dir::new();
    let sum = dir.run("top before.pb.gz after.pb.gz").success();
    assert!(sum.starts_with("cpu: 30 s in total\n"), "{sum}");
    let bytes = std::fs::read(dir.path("before.pb.gz")).unwrap();
    let outcome = everflame_with_stdin(dir.0.path(), "top -", &bytes);
    assert_eq!(outcome.success(), dir.run("top before.pb.gz").success());
}

/// Encodes a field with a length: a string, a message or packed numbers.
fn field(number: u8, payload: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(payload.len()).unwrap()], payload].concat()
}

/// As other writers do it: no gzip, no mapping, no default, ids that are not 1, 2, 3, and
/// repeated numbers one by one instead of packed.
#[test]
fn profile_written_by_hand_is_read() {
    let strings = ["", "wall", "milliseconds", "outer", "inner"];
    let bytes = [
        field(1, &[0x08, 1, 0x10, 2]),
        field(2, &[0x08, 70, 0x08, 50, 0x10, 25]),
        field(2, &[0x08, 50, 0x10, 75]),
        field(4, &[0x08, 50, 0x22, 2, 0x08, 9]),
        field(4, &[0x08, 70, 0x22, 2, 0x08, 3]),
        field(5, &[0x08, 9, 0x10, 3]),
        field(5, &[0x08, 3, 0x10, 4]),
        strings.iter().flat_map(|text| field(6, text.as_bytes())).collect(),
    ]
    .concat();
    let dir = Dir::new();
    std::fs::write(dir.path("hand.pprof"), bytes).unwrap();
    let table = dir.run("top hand.pprof").success();
    let lines: Vec<_> = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0].join(" "), "wall: 100 ms in total");
    assert_eq!(lines[2].join(" "), "75 ms 75.0% 100 ms 100.0% outer");
    assert_eq!(lines[3].join(" "), "25 ms 25.0% 25 ms 25.0% inner");
}

/// `go tool pprof -proto` writes profiles with Go's own encoder.
#[test]
fn profile_written_by_go_is_read() {
    let dir = Dir::new();
    let go = Command::new("go")
        .args(["tool", "pprof", "-proto", "-output", "go.pb.gz", "before.pb.gz"])
        .env("HOME", dir.0.path())
        .current_dir(dir.0.path())
        .output();
    if !go.is_ok_and(|go| go.status.success()) {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI needs `go` for this");
        println!("skipped: `go tool pprof` does not run here");
        return;
    }
    assert_eq!(dir.run("top go.pb.gz").success(), dir.run("top before.pb.gz").success());
}

#[test]
fn failures_have_their_exit_code_and_one_clear_message() {
    let dir = Dir::new();
    std::fs::write(dir.path("other.txt"), "main;work 7\n").unwrap();
    let cases = [
        ("", 64, "Usage: everflame"),
        ("tpo", 64, "unrecognized subcommand 'tpo'"),
        ("top --from yesterday", 64, "not a time"),
        ("top --from now --to -1h", 64, "--from must be before --to"),
        ("top before.pb.gz --selector {}", 64, "cannot be used with"),
        ("top --kind heap", 64, "unknown profile kind `heap`"),
        ("top --server ftp://x", 64, "cannot use ftp://x"),
        ("top before.pb.gz --sample-type wall", 64, "it has samples, cpu"),
        ("top before.pb.gz -o out.svg", 64, "does not write svg"),
        ("flame before.pb.gz -o out.xyz", 64, "out.xyz does not say what to write"),
        ("diff before.pb.gz", 64, "<AFTER>"),
        ("diff", 64, "say what to compare with"),
        ("record -o out.png", 64, "end it in .pb.gz for a pprof profile"),
        ("record --duration 1x -o out.svg", 64, "not a duration"),
        ("top other.txt", 65, "cannot use other.txt: not a pprof profile"),
        ("top missing.pb.gz", 66, "cannot read missing.pb.gz: No such file"),
        ("top .", 66, "cannot read .: Is a directory"),
        ("record --pid 4294967295 -o out.svg", 66, "there is no process with pid 4294967295"),
        ("top --server 127.0.0.1:1", 69, "cannot reach a collector at http://127.0.0.1:1"),
        ("top before.pb.gz -o none/out.json", 74, "cannot write none/out.json"),
        ("top empty.pb.gz", 2, "no samples in empty.pb.gz"),
        ("flame empty.pb.gz -o out.svg", 2, "no samples in empty.pb.gz"),
        ("diff before.pb.gz empty.pb.gz", 2, "no samples in empty.pb.gz"),
    ];
    for (arguments, code, message) in cases {
        let outcome = dir.run(arguments);
        assert_eq!(outcome.code, Some(code), "{arguments}: {outcome:?}");
        assert!(outcome.stderr.contains(message), "{arguments}: {outcome:?}");
        assert_eq!(outcome.stdout, "", "{arguments}");
        if !arguments.is_empty() {
            assert!(outcome.stderr.starts_with("everflame: "), "{arguments}: {outcome:?}");
        }
    }
    assert!(!dir.path("out.svg").exists());
}

#[test]
fn unreachable_collector_says_how_to_start_one() {
    let outcome = Dir::new().run("top --server 127.0.0.1:1");
    assert!(outcome.stderr.contains("everflame-server --data-dir DIR"), "{outcome:?}");
    assert!(outcome.stderr.contains("--server URL"), "{outcome:?}");
}

#[test]
fn empty_result_as_json_is_still_json() {
    let outcome = Dir::new().run("top empty.pb.gz --format json");
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stdout.contains("\"functions\": []"), "{outcome:?}");
}

#[test]
fn reader_that_goes_away_is_no_error() {
    let dir = Dir::new();
    for arguments in ["top before.pb.gz", "flame before.pb.gz --format svg", "--help"] {
        let mut child = start(dir.0.path(), arguments);
        // Closed before anything is written.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments}");
    }
}
