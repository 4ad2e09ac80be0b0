//! Kind `alloc`: which code makes a process grow, and what is shown of one that runs out of memory.

mod oom;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use everflame_tests::cost::status_mib;
use everflame_tests::profile::{self, Sample};
use everflame_tests::program::{Running, everflame, wait_for};
use everflame_tests::redis::Redis;
use everflame_tests::workload::workload;
use rustix::process::{Pid, Signal, kill_process};
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
        println!("{line}");
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

/// Bytes at a line of grow.c, by what Go's pprof makes of a profile. `text` is in that line.
fn bytes_at_line(profile: &Path, function: &str, text: &str, dir: &Path) -> f64 {
    let top = Command::new("go")
        .args(["tool", "pprof", "-sample_index=alloc_space", "-unit=B", "-nodefraction=0"])
        .args(["-lines", "-cum", "-top"])
        .arg(profile)
        .env("PPROF_TMPDIR", dir)
        .output()
        .unwrap_or_else(|error| panic!("go (`cargo xtask setup --tests` installs it): {error}"));
    assert_eq!(String::from_utf8_lossy(&top.stderr), "", "go tool pprof has something to say");
    let top = String::from_utf8(top.stdout).unwrap();
    let source = std::fs::read_to_string(everflame_tests::workload::source("grow.c")).unwrap();
    let start = source.find(&format!("void {function}(")).unwrap();
    let end = start + source[start..].find(text).unwrap();
    let line = 1 + source[..end].matches('\n').count();
    // A loop's test may be charged to the line above its body.
    let is_there = |row: &&str| {
        row.contains(&format!("{function} "))
            && [line, line - 1].iter().any(|line| row.contains(&format!("grow.c:{line}")))
    };
    // flat flat% sum% cum cum% name
    let cum = |row: &str| row.split_whitespace().nth(3)?.strip_suffix('B')?.parse::<f64>().ok();
    let rows = top.lines().filter(is_there).map(|row| cum(row).unwrap_or_else(|| panic!("{row}")));
    rows.sum()
}

#[test]
fn go_pprof_shows_growth_at_the_lines_that_grow() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let grow = workload("grow");
    let file = dir.path().join("file");
    let mut command = [grow.to_str().unwrap(), file.to_str().unwrap()];
    let (output, stdout) = record(&[], &mut command, dir.path());
    let truth = truth(&stdout);
    // Touched by the program, and by the kernel on its behalf.
    for (function, text) in [("touch_pages", "memory[at] = 1;"), ("read_into", "= read(")] {
        let (_, expected) = truth.iter().find(|(name, _)| name == function).unwrap();
        let found = bytes_at_line(&output, function, text, dir.path());
        println!("{function}, at `{text}`: {:.1} MiB of {:.1}", found / MIB, expected / MIB);
        assert!((found - expected).abs() <= expected * 0.03, "{function}: {found} of {expected}");
    }
}

/// A recording of a process that runs already, until it is told to end.
fn record_process(pid: u32, output: &Path) -> Running {
    let mut command = everflame();
    command.args(["record", "--kind", "alloc", "--pid", &pid.to_string(), "-o"]);
    let recorder = Running::start(command.arg(output).stdout(Stdio::null()));
    // One program for exec, and then the one that sees growth.
    wait_for("recording has begun", || attached_programs(recorder.pid()) >= 2);
    recorder
}

/// How many BPF programs a process has attached.
fn attached_programs(pid: u32) -> usize {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return 0 };
    let infos = descriptors.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    infos.filter(|info| info.contains("link_type:")).count()
}

/// Of 1000 bytes each.
const STRINGS: u64 = 190_000;

#[test]
fn redis_shows_by_what_way_it_allocates() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let redis = Redis::start(dir.path(), |_| {});
    let output = dir.path().join("redis.pb.gz");
    let mut recorder = record_process(redis.process.pid(), &output);
    let rss = || status_mib(redis.process.pid(), "VmRSS");
    let before = rss();
    redis.fill(STRINGS);
    let grown = rss() - before;
    let pid = i32::try_from(recorder.pid()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert!(recorder.wait().success(), "{}", recorder.log());

    let (_, samples) = profile::read(&output);
    let sum = |samples: &mut dyn Iterator<Item = &Sample>| -> f64 {
        samples.map(|sample| sample.value as f64).sum::<f64>() / MIB
    };
    let found = sum(&mut samples.iter());
    // Names that Debian's program exports. The string's first byte is written after malloc has
    // returned: the kernel gives a page when it is touched.
    let way = ["_sdsnewlen", "createStringObject", "readQueryFromClient", "aeMain", "main"];
    let by_way = sum(&mut samples.iter().filter(|sample| way.iter().all(|name| sample.has(name))));
    println!("redis: {found:.1} MiB of {grown:.1}, {by_way:.1} of them by {way:?}");
    assert!(grown > 200.0, "it has grown by {grown} MiB only");
    assert!((found - grown).abs() <= grown * 0.03, "{found} MiB of {grown}");
    // The rest is tables of names, and what the allocator needs for itself.
    let strings = STRINGS as f64 * 1000.0 / MIB;
    assert!(by_way >= 0.97 * strings && by_way <= found, "{by_way} MiB, {strings} of strings");
}
