//! Mode `window`: probes on allocators' functions.

use std::path::{Path, PathBuf};
use std::process::Command;

use everflame_tests::allocations::{Allocating, Truth, probed_bytes, values_of, wait_for_probes};
use everflame_tests::profile;
use everflame_tests::program::{Agent, Running, Server, everflame, wait_for};
use everflame_tests::stored::{of_process, stored};
use everflame_tests::workload::{compile_with, cxx_workload, go_workload, rust_workload, workload};
use tempfile::TempDir;

use crate::take_turn;

const MIB: f64 = 1_048_576.0;

/// Sampling periods, in bytes, and how they are asked for.
const PERIODS: [(f64, &[&str]); 2] =
    [(32.0 * 1024.0, &["--alloc-period", "32KiB"]), (524_288.0, &[])];

fn record(pid: u32, arguments: &[&str], output: &Path) -> Command {
    let mut command = everflame();
    command
        .args(["record", "--kind", "alloc", "--mode", "window", "--duration", "10m", "--pid"])
        .arg(pid.to_string())
        .args(arguments)
        .arg("-o")
        .arg(output);
    command
}

/// Records a program from before it allocates until it ends. What it says of itself.
fn recorded(program: &Path, arguments: &[&str], output: &Path) -> Vec<Truth> {
    let mut program = Allocating::start(program);
    let mut recording = Running::start(&mut record(program.pid(), arguments, output));
    wait_for_probes(program.pid());
    let truth = program.allocate();
    program.finish();
    let status = recording.wait();
    assert!(status.success(), "{}", recording.log());
    truth
}

/// Compares what was recorded of each function with the truth, at two periods.
fn check(program: &Path, functions: usize, allocator: &str) {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = dir.path().join("alloc.pb.gz");
    let mut wrong = Vec::new();
    for (period, arguments) in PERIODS {
        let truth = recorded(program, arguments, &output);
        assert_eq!(truth.len(), functions, "{truth:?}");
        for expected in &truth {
            let [objects, bytes, live_objects, live_bytes] = values_of(&output, &expected.function);
            let bound = (4.0 * expected.standard_error(period)).max(0.03);
            let line = format!(
                "{} at {period}: {:.1} MiB of {:.1}, {objects} objects of {}, within {:.1} %",
                expected.function,
                bytes / MIB,
                expected.bytes / MIB,
                expected.objects,
                bound * 100.0
            );
            let is_off = |found: f64, truth: f64, bound: f64| (found - truth).abs() > truth * bound;
            // Of objects of several sizes it is the small ones, of which few are sampled, that make the number of
            // objects uncertain: up to 1.4 times as much as objects of the mean size would.
            let bound_of_objects = bound * 1.4;
            if is_off(bytes, expected.bytes, bound)
                || is_off(objects, expected.objects, bound_of_objects)
            {
                wrong.push(line);
            }
            if (live_objects, live_bytes) != (0.0, 0.0) {
                wrong.push(format!("{}: it is not known what is live", expected.function));
            }
        }
        let (_, samples) = profile::read(&output);
        let other = samples.iter().filter(|sample| {
            sample.label("mode") != "window" || sample.label("allocator") != allocator
        });
        // Of a program with an allocator of its own, what its C library does for itself.
        let other = other.map(|sample| sample.value as f64).sum::<f64>();
        let all: f64 = truth.iter().map(|truth| truth.bytes).sum();
        if other > all * 0.01 {
            wrong.push(format!("{other} bytes are not of {allocator}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn c_program_allocates_as_much_as_it_says() {
    check(&workload("allocate"), 6, "glibc");
}

#[test]
fn cxx_program_allocates_as_much_as_it_says() {
    check(&cxx_workload("allocate_cxx"), 4, "glibc");
}

#[test]
fn rust_program_allocates_as_much_as_it_says() {
    check(&rust_workload("allocate_rust", "allocate_system"), 5, "glibc");
}

#[test]
fn rust_program_with_jemalloc_linked_in_allocates_as_much_as_it_says() {
    check(&rust_workload("allocate_rust", "allocate_jemalloc"), 5, "jemalloc");
}

#[test]
fn go_program_allocates_as_much_as_it_says() {
    check(&go_workload("allocate_go"), 2, "go");
}

/// A program of which nothing is known: linked statically, without symbols.
fn stripped() -> PathBuf {
    let dir = everflame_tests::program::scratch_dir().join("allocate-stripped");
    compile_with("allocate", &["-static", "-s"], &dir);
    dir
}

#[test]
fn program_without_symbols_is_refused_with_what_was_tried() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = dir.path().join("alloc.pb.gz");
    let stripped = stripped();
    let program = Allocating::start(&stripped);
    let recorded = record(program.pid(), &[], &output).output().unwrap();
    let stderr = String::from_utf8_lossy(&recorded.stderr);
    assert_eq!(recorded.status.code(), Some(69), "{stderr}");
    let said = format!("no allocator found in pid {}, tried {}", program.pid(), stripped.display());
    assert!(stderr.contains(&said), "{stderr}");
    assert!(stderr.contains("malloc, calloc") && stderr.contains("runtime.mallocgc"), "{stderr}");
    assert!(!output.exists());
    program.kill();
}

#[test]
fn mode_needs_a_process() {
    for arguments in [&["-o", "f.pb.gz"][..], &["-o", "f.pb.gz", "--", "true"]] {
        let output = everflame()
            .args(["record", "--kind", "alloc", "--mode", "window"])
            .args(arguments)
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&output.stderr).contains("--pid"), "{output:?}");
    }
}

#[test]
fn program_that_is_killed_ends_its_recording() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = dir.path().join("alloc.pb.gz");
    let mut program = Allocating::start(&workload("allocate"));
    let mut recording = Running::start(&mut record(program.pid(), PERIODS[0].1, &output));
    wait_for_probes(program.pid());
    program.begin();
    // Somewhere in what it does.
    std::thread::sleep(std::time::Duration::from_millis(100));
    program.kill();
    let status = recording.wait();
    assert!(status.success(), "{}", recording.log());
    assert!(values_of(&output, "outer")[1] > 0.0);
}

#[test]
fn process_is_as_before_when_the_recording_ends() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = dir.path().join("alloc.pb.gz");
    let mut program = Allocating::start(&workload("allocate"));
    let mut recording = Running::start(&mut record(program.pid(), &[], &output));
    wait_for_probes(program.pid());
    let truth = program.allocate();
    recording.terminate();
    assert_eq!(probed_bytes(program.pid()), 0, "probes are left");
    assert!(values_of(&output, &truth[0].function)[1] > 0.0);
    // And goes on.
    program.finish();
}

/// How many probes a process holds.
fn links(pid: u32) -> usize {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return 0 };
    let infos = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    infos.filter(|info| info.contains("uprobe_multi") || info.contains("link_type:\tperf")).count()
}

#[test]
fn windows_of_two_hundred_processes_leave_nothing_behind() {
    const PROCESSES: usize = 200;
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = workload("allocate");
    let mut programs: Vec<Allocating> =
        (0..PROCESSES).map(|_| Allocating::start(&program)).collect();
    let mut agent = Agent::start(
        // Nobody listens: batches stay in the spool.
        "http://127.0.0.1:9",
        dir.path(),
        &[
            "--kinds",
            "alloc",
            "--window",
            "1s",
            "--alloc-window",
            "10s",
            "--alloc-window-interval",
            "12s",
            "--alloc-window-processes",
            "400",
            "--alloc-window-budget",
            "60s",
        ],
    );
    let probed =
        |programs: &[Allocating]| programs.iter().filter(|p| probed_bytes(p.pid()) > 0).count();
    wait_for("a window on all of them", || probed(&programs) == PROCESSES);
    assert!(links(agent.process.pid()) >= PROCESSES);
    // Half of them end within the window: one by itself, which takes a moment, the others by force.
    let mut ending = programs.split_off(PROCESSES / 2).into_iter();
    let mut well = ending.next().unwrap();
    ending.for_each(Allocating::kill);
    well.allocate();
    well.finish();
    wait_for("the window's end", || probed(&programs) == 0);
    wait_for("links to go", || links(agent.process.pid()) == 0);
    let opened = || agent.metric("everflame_agent_alloc_windows_total");
    wait_for("their count", || opened() >= PROCESSES as f64);
    wait_for("the next window", || probed(&programs) == PROCESSES / 2);
    assert!(agent.process.terminate().success());
    wait_for("no probe is left", || probed(&programs) == 0);
    // Those that are left do what they are told.
    let mut left = programs.pop().unwrap();
    left.allocate();
    left.finish();
}

#[test]
fn window_that_costs_too_much_ends_early() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut program = Allocating::start(&workload("allocate"));
    let agent = Agent::start(
        "http://127.0.0.1:9",
        dir.path(),
        &[
            "--kinds",
            "alloc",
            "--window",
            "1s",
            "--alloc-window",
            "600s",
            "--alloc-window-interval",
            "1000s",
            "--alloc-window-processes",
            "1000",
            "--alloc-window-budget",
            "100ms",
        ],
    );
    wait_for("a window", || probed_bytes(program.pid()) > 0);
    // Six million calls.
    let truth = program.allocate();
    assert!(!truth.is_empty());
    wait_for("its end", || probed_bytes(program.pid()) == 0);
    wait_for("its count", || agent.metric("everflame_agent_alloc_windows_stopped_total") >= 1.0);
    assert!(agent.metric("everflame_agent_alloc_window_cost_seconds_total") >= 0.1);
    program.finish();
}

#[test]
fn agent_delivers_windows_by_allocator() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let mut program = Allocating::start(&workload("allocate"));
    let spool = dir.path().join("spool");
    let _agent = Agent::start(
        &server.url(),
        &spool,
        &[
            "--kinds",
            "alloc",
            "--window",
            "1s",
            "--alloc-window",
            "600s",
            "--alloc-window-interval",
            "1000s",
            "--alloc-window-processes",
            "1000",
            "--alloc-window-budget",
            "600s",
        ],
    );
    wait_for("a window", || probed_bytes(program.pid()) > 0);
    let truth = program.allocate();
    let selector = of_process(program.pid());
    let big = &truth[0];
    assert_eq!(big.function, "make_big");
    let mut found = 0.0;
    wait_for("what the program has allocated", || {
        let samples = stored(&server, "alloc", &selector, None, dir.path());
        let of_windows = samples.iter().filter(|sample| sample.label("mode") == "window");
        let of_windows = of_windows.filter(|sample| sample.label("allocator") == "glibc");
        let below = of_windows.filter(|sample| sample.has(&big.function));
        found = below.map(|sample| sample.value as f64).sum();
        // All of it or, with a sample for each 512 KiB, some.
        found > big.bytes / 2.0
    });
    let bound = (4.0 * big.standard_error(PERIODS[1].0)).max(0.03);
    assert!((found - big.bytes).abs() <= big.bytes * bound, "{found} of {}", big.bytes);
    program.finish();
}
