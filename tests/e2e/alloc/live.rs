//! Mode `live`: what processes hold, by the library that is loaded into them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use everflame_tests::allocations::{Allocating, Truth};
use everflame_tests::profile::{self, Sample};
use everflame_tests::program::{Agent, Running, Server, everflame, wait_for};
use everflame_tests::workload::{cxx_workload, rustc_workload, workload};
use serde_json::Value;
use tempfile::TempDir;

use super::program::Program;
use crate::take_turn;

/// What the library samples with unless somebody asks for something else.
const DEFAULT_PERIOD: f64 = 524_288.0;

const ALLOC_SPACE: usize = 1;
const INUSE_SPACE: usize = 3;

/// A recording that goes on until it is stopped.
struct Recording {
    process: Running,
    output: PathBuf,
}

impl Recording {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let output = dir.join("live.pb.gz");
        let mut command = everflame();
        command.args(["record", "--kind", "alloc", "--mode", "live", "--duration", "10m", "-o"]);
        command.arg(&output).args(arguments).stdout(Stdio::null());
        Self { process: Running::start(&mut command), output }
    }

    /// Waits until it samples a program.
    fn sees(&mut self, program: &Program) {
        wait_for("the recording attaches", || program.semaphore() > 0);
        // Its tables of unwind rules may be in the making.
        std::thread::sleep(Duration::from_secs(1));
    }

    fn stop(mut self) -> Vec<Sample> {
        let status = self.process.terminate();
        assert!(status.success(), "{}", self.process.log());
        let log = self.process.log();
        // Said of the samples that the estimates of this test rest upon.
        assert!(!log.contains("were lost"), "{log}");
        profile::read(&self.output).1
    }
}

/// What a function is called in the languages of the programs.
fn is_named(name: &str, function: &str) -> bool {
    let name = name.split('(').next().unwrap_or(name);
    name.rsplit("::").next() == Some(function)
}

/// Bytes below a function, of what has index `value` among the sample types.
fn bytes_below(samples: &[Sample], function: &str, value: usize) -> f64 {
    let below =
        samples.iter().filter(|sample| sample.stack.iter().any(|name| is_named(name, function)));
    below.map(|sample| sample.values[value] as f64).sum()
}

/// The standard error of an estimate of that many bytes of the objects that a function allocates.
fn standard_error(truth: &Truth, bytes: f64, period: f64) -> f64 {
    // Its share shrinks with the square root of the number of objects.
    truth.standard_error(period) * (truth.bytes * bytes).sqrt()
}

/// Compares estimates with what the program says: within 3 %, or 4 standard errors where that is more.
#[expect(clippy::print_stdout, reason = "figures, for whoever asks for them")]
fn check(samples: &[Sample], truths: &[Truth], period: f64) {
    let mut wrong = Vec::new();
    for truth in truths {
        let values = [
            ("alloc_space", ALLOC_SPACE, truth.bytes),
            ("inuse_space", INUSE_SPACE, truth.live_bytes),
        ];
        for (name, value, expected) in values {
            let found = bytes_below(samples, &truth.function, value);
            let bound = (expected * 0.03).max(4.0 * standard_error(truth, expected, period));
            let [found_mib, expected_mib, bound_mib] =
                [found, expected, bound].map(|bytes| bytes / 1_048_576.0);
            let line = format!(
                "{} {name}: {found_mib:.2} MiB of {expected_mib:.2}, to {bound_mib:.2}",
                truth.function
            );
            println!("{line}");
            // Of what was freed nothing is left: there the bound is 0.
            if (found - expected).abs() > bound {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Records a program by its process id; the samples, and what the program says.
fn record(command: &mut Command, arguments: &[&str]) -> (Vec<Sample>, Vec<Truth>) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut program = Program::start(command);
    let pid = program.pid().to_string();
    let mut recording = Recording::start(dir.path(), &[&["--pid", &pid], arguments].concat());
    recording.sees(&program);
    let truths = program.allocate();
    let samples = recording.stop();
    assert_eq!(program.semaphore(), 0, "probes are left");
    assert!(program.has_its_own_code(), "traps are left");
    assert_eq!(program.period() as f64, DEFAULT_PERIOD, "what was set is not set back");
    program.end();
    (samples, truths)
}

#[test]
fn allocations_and_what_is_held_are_what_the_program_says() {
    let Some(_turn) = take_turn() else { return };
    let mut allocate = Command::new(workload("allocate"));
    let (samples, truths) = record(&mut allocate, &["--alloc-period", "32KiB"]);
    check(&samples, &truths, 32.0 * 1024.0);
    for sample in samples.iter().filter(|sample| sample.has("leak_here")) {
        // The library's own frames are nobody's business.
        assert_eq!(sample.stack[0], "leak_here");
        assert!(sample.has("outer") && sample.has("main"), "{:?}", sample.stack);
        assert_eq!((sample.label("mode"), sample.label("allocator")), ("live", "glibc"));
    }
}

#[test]
fn the_period_is_left_to_the_program_unless_another_one_is_asked_for() {
    let Some(_turn) = take_turn() else { return };
    let (samples, truths) = record(&mut Command::new(workload("allocate")), &[]);
    check(&samples, &truths, DEFAULT_PERIOD);
}

#[test]
fn rust_programs_are_seen_by_the_system_allocator() {
    let Some(_turn) = take_turn() else { return };
    let mut allocate = Command::new(rustc_workload("allocate"));
    let (samples, truths) = record(&mut allocate, &["--alloc-period", "32KiB"]);
    check(&samples, &truths, 32.0 * 1024.0);
}

#[test]
fn cxx_programs_are_seen_by_operator_new() {
    let Some(_turn) = take_turn() else { return };
    let mut allocate = Command::new(cxx_workload("allocate"));
    let (samples, truths) = record(&mut allocate, &["--alloc-period", "32KiB"]);
    check(&samples, &truths, 32.0 * 1024.0);
}

#[test]
fn leaks_names_the_function_that_leaks_first() {
    let Some(_turn) = take_turn() else { return };
    let mut program = Program::start(&mut Command::new(workload("allocate")));
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = dir.path().join("leaks.json");
    let pid = program.pid().to_string();
    let mut command = everflame();
    command.args(["leaks", "--pid", &pid, "--duration", "10m", "-o"]).arg(&output);
    let mut leaks = Running::start(&mut command);
    wait_for("leaks attaches", || program.semaphore() > 0);
    std::thread::sleep(Duration::from_secs(1));
    let truths = program.allocate();
    assert!(leaks.terminate().success(), "{}", leaks.log());
    let report: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();
    let first = &report["stacks"][0];
    assert_eq!(first["stack"][0], "leak_here", "{report:#}");
    assert_eq!(first["stack"][1], "outer", "{report:#}");
    let source = std::fs::read_to_string(everflame_tests::workload::source("allocate.c")).unwrap();
    let site = first["site"].as_str().unwrap();
    let line: usize = site.strip_prefix("allocate.c:").unwrap().parse().unwrap();
    let line = source.lines().nth(line - 1).unwrap();
    assert!(line.contains("keep(&leaked"), "{site}: {line}");
    let truth = truths.iter().find(|truth| truth.function == "leak_here").unwrap();
    let held = first["held_bytes"].as_f64().unwrap();
    let bound = 4.0 * standard_error(truth, truth.live_bytes, DEFAULT_PERIOD);
    assert!((held - truth.live_bytes).abs() <= bound, "{held} of {}, {bound}", truth.live_bytes);
    assert!(first["oldest_ns"].as_i64().unwrap() > 0, "{report:#}");
    program.end();
}

#[test]
fn leaks_of_a_process_without_the_library_says_how_to_load_it() {
    let Some(_turn) = take_turn() else { return };
    let program = Allocating::start(&workload("allocate"));
    let output = everflame().args(["leaks", "--pid", &program.pid().to_string()]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    // EX_UNAVAILABLE.
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(stderr.contains("LD_PRELOAD=") && stderr.contains("docs/live-heap.md"), "{stderr}");
    program.kill();
}

#[test]
fn child_of_fork_holds_copies_and_has_a_heap_of_its_own() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut program = Program::start(&mut Command::new(workload("fork_heap")));
    let arguments = ["--comm", "fork_heap", "--alloc-period", "32KiB"];
    let mut recording = Recording::start(dir.path(), &arguments);
    recording.sees(&program);
    let mut truths = program.allocate();
    let parent_pid = program.pid().to_string();
    let (parent, child): (Vec<Sample>, Vec<Sample>) =
        recording.stop().into_iter().partition(|sample| sample.label("pid") == parent_pid);
    let in_child = truths.pop().unwrap();
    let before_fork = truths.pop().unwrap();
    let period = 32.0 * 1024.0;
    check(&child, &[in_child], period);
    assert_eq!(bytes_below(&parent, "in_child", ALLOC_SPACE), 0.0);
    // The child has freed half, and has allocated none of it.
    assert_eq!(bytes_below(&child, "before_fork", ALLOC_SPACE), 0.0);
    let half = before_fork.bytes / 2.0;
    let held = bytes_below(&child, "before_fork", INUSE_SPACE);
    let bound = 4.0 * standard_error(&before_fork, half, period);
    assert!((held - half).abs() <= bound, "{held} of {half}, {bound}");
    check(&parent, &[before_fork], period);
    program.end();
}

#[test]
fn process_that_starts_and_ends_within_a_recording_has_allocated_and_holds_nothing() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // There is somebody with the library already, so that it is attached to.
    let before = Program::start(&mut Command::new(workload("allocate")));
    let mut recording = Recording::start(dir.path(), &["--comm", "allocate"]);
    recording.sees(&before);
    let mut program = Program::start(&mut Command::new(workload("allocate")));
    assert!(program.semaphore() > 0, "the kernel attaches as the library is mapped");
    std::thread::sleep(Duration::from_secs(1));
    let truths: Vec<Truth> =
        program.allocate().into_iter().map(|truth| Truth { live_bytes: 0.0, ..truth }).collect();
    program.end();
    std::thread::sleep(Duration::from_millis(500));
    check(&recording.stop(), &truths, DEFAULT_PERIOD);
}

#[test]
fn program_goes_on_unsampled_when_the_recording_is_killed() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut program = Program::start(&mut Command::new(workload("allocate")));
    let pid = program.pid().to_string();
    let mut recording = Recording::start(dir.path(), &["--pid", &pid]);
    recording.sees(&program);
    recording.process.kill();
    wait_for("the kernel detaches", || program.semaphore() == 0);
    assert!(program.has_its_own_code());
    assert!(!program.allocate().is_empty());
    program.end();
}

#[test]
fn windows_of_an_agent_show_what_was_allocated_in_earlier_ones() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let mut program = Program::start(&mut Command::new(workload("allocate")));
    let arguments = ["--kinds", "alloc", "--alloc-modes", "live", "--window", "2s"];
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    wait_for("the agent attaches", || program.semaphore() > 0);
    std::thread::sleep(Duration::from_secs(1));
    let truths = program.allocate();
    let windows = || agent.metric("everflame_agent_windows_total");
    let allocated = windows();
    // In the second from now on nothing is allocated any more.
    wait_for("two more windows", || windows() >= allocated + 3.0);
    let allocated_until = std::time::SystemTime::now();
    let then = windows();
    wait_for("another window", || windows() >= then + 2.0);
    assert!(agent.metric("everflame_agent_live_objects") > 0.0, "{}", agent.metrics());
    // And one that ends with the agent, and one in which a second begins.
    let most = windows() - then + 2.0;
    assert!(agent.process.terminate().success(), "{}", agent.process.log());
    assert_eq!(program.semaphore(), 0, "probes are left");

    let from = allocated_until.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // None where all values are 0.
    let top = |sample_type: &str| -> Option<Value> {
        let output = everflame()
            .args(["top", "--kind", "alloc", "--format", "json", "--server", &server.url()])
            .args(["--selector", r#"{comm="allocate",mode="live"}"#])
            .args(["--sample-type", sample_type, "--from", &from.to_string()])
            .output()
            .unwrap();
        let status = output.status;
        assert!(
            status.success() || status.code() == Some(2),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    };
    let held = top("inuse_space").unwrap();
    let functions = held["functions"].as_array().unwrap();
    let leak = functions.iter().find(|function| function["name"] == "leak_here");
    let leak = leak.unwrap_or_else(|| panic!("{held:#}"))["self_value"].as_f64().unwrap();
    let truth = truths.iter().find(|truth| truth.function == "leak_here").unwrap();
    let bound = 4.0 * standard_error(truth, truth.live_bytes, DEFAULT_PERIOD);
    // Each window has all that is held at its end.
    let windows = (leak / truth.live_bytes).round();
    assert!((1.0..=most).contains(&windows), "{windows} of {most} windows: {held:#}");
    assert!((leak / windows - truth.live_bytes).abs() <= bound, "{leak} of {windows} windows");
    assert_eq!(top("alloc_space"), None, "nothing is allocated any more");
    program.end();
}
