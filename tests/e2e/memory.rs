//! `everflame record --kind alloc`: which code makes a process grow.

use std::path::{Path, PathBuf};
use std::process::Command;

use everflame_tests::profile::{self, Sample};
use everflame_tests::program::everflame;
use everflame_tests::workload::workload;
use tempfile::TempDir;

use crate::take_turn;

const MIB: f64 = 1_048_576.0;

/// Records a command; its profile, and what the command has said.
fn record(arguments: &[&str], command: &mut [&str], dir: &Path) -> (PathBuf, String) {
    let output = dir.join("alloc.pb.gz");
    let recorded = everflame()
        .args(["record", "--kind", "alloc", "-o"])
        .arg(&output)
        .args(arguments)
        .arg("--")
        .args(command)
        .output()
        .unwrap();
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    (output, String::from_utf8(recorded.stdout).unwrap())
}

/// Bytes below a function.
fn bytes_of(samples: &[Sample], function: &str) -> f64 {
    let below = samples.iter().filter(|sample| sample.has(function));
    below.map(|sample| sample.value as f64).sum()
}

/// What the program says that it got: (function, bytes).
fn truth(stdout: &str) -> Vec<(String, f64)> {
    let field = |line: &str, name: &str| {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name));
        word.unwrap_or_else(|| panic!("no {name} in {line}")).to_owned()
    };
    let grew = stdout.lines().filter(|line| line.starts_with("grew "));
    grew.map(|line| (field(line, "function="), field(line, "bytes=").parse().unwrap())).collect()
}

#[test]
fn growth_is_charged_to_the_code_that_got_the_memory() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let grow = workload("grow");
    let file = dir.path().join("file");
    let mut command = [grow.to_str().unwrap(), file.to_str().unwrap()];
    let (output, stdout) = record(&[], &mut command, dir.path());
    let (_, samples) = profile::read(&output);
    let truth = truth(&stdout);
    assert_eq!(truth.len(), 7, "{stdout}");

    let mut wrong = Vec::new();
    for (function, expected) in &truth {
        let found = bytes_of(&samples, function);
        let line = format!("{function}: {:.1} MiB of {:.1}", found / MIB, expected / MIB);
        // Of each, a batch of each CPU and a period at either end.
        if (found - expected).abs() > expected * 0.03 {
            wrong.push(line);
        }
        let memory = match function.as_str() {
            "read_mapping" => "file",
            "touch_shared" => "shared",
            _ => "anonymous",
        };
        let below = samples.iter().filter(|sample| sample.has(function));
        let other: i64 =
            below.clone().filter(|s| s.label("memory") != memory).map(|s| s.value).sum();
        if other as f64 > expected * 0.02 {
            wrong.push(format!("{function}: {other} bytes are not {memory}"));
        }
        if !below.clone().all(|sample| sample.has("outer") && sample.has("main")) {
            wrong.push(format!("{function}: stacks without their callers"));
        }
        if !below.clone().all(|sample| sample.label("mode") == "faults") {
            wrong.push(format!("{function}: no label `mode`"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn go_pprof_reads_such_a_profile_as_a_heap_profile() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let grow = workload("grow");
    let file = dir.path().join("file");
    let mut command = [grow.to_str().unwrap(), file.to_str().unwrap()];
    let (output, _) = record(&["--alloc-period", "1MiB"], &mut command, dir.path());
    let top = Command::new("go")
        .args(["tool", "pprof", "-sample_index=alloc_space", "-lines", "-cum", "-top"])
        .arg(&output)
        .env("PPROF_TMPDIR", dir.path())
        .output()
        .unwrap_or_else(|error| panic!("go (`cargo xtask setup --tests` installs it): {error}"));
    assert_eq!(String::from_utf8_lossy(&top.stderr), "", "go tool pprof has something to say");
    let top = String::from_utf8(top.stdout).unwrap();
    // At the line that touches.
    let source = std::fs::read_to_string(everflame_tests::workload::source("grow.c")).unwrap();
    let line = 1 + source.lines().position(|line| line.contains("memory[at] = 1;")).unwrap();
    let row =
        top.lines().find(|row| row.contains("touch_pages")).unwrap_or_else(|| panic!("{top}"));
    assert!(
        row.contains(&format!("grow.c:{line}")) || row.contains(&format!("grow.c:{}", line - 1)),
        "{row}"
    );
}
