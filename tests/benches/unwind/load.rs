//! From exec to the tables: how long a new program has to wait until its stacks are walked in the
//! kernel.
//!
//! Seen from outside: the kernel says when a program was executed, and samples at a high rate say
//! from when on the walk reaches the outermost frame.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use everflame_agent::collect::{CollectConfig, Collector, Event, ProcessEvent};
use everflame_agent::process::ProcessTable;
use everflame_agent_common::unwind::Stop;
use everflame_tests::cost::{median, quantile};
use everflame_tests::program::Running;
use everflame_tests::workload::workload;
use tempfile::TempDir;

use everflame_tests::bench::print;

const RATE_HZ: u64 = 5000;
/// Starts of each program once its table is there.
const WARM_ROUNDS: usize = 40;
/// Agents that have no table of it yet, or have it on disk only.
const COLD_ROUNDS: usize = 5;

pub(crate) fn run() {
    eprintln!("from exec to complete stacks ...");
    let dir = TempDir::new().unwrap();
    let large = large_binary(dir.path());
    let programs = [
        ("load_libc", workload("deep"), vec!["22", "0.05"]),
        ("load_100k_rows", large, vec!["0.05"]),
    ];
    for (name, program, arguments) in &programs {
        let start = || {
            let mut command = Command::new(program);
            command.args(arguments).stdout(Stdio::null());
            command
        };
        let (mut compiled, mut from_disk, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..COLD_ROUNDS {
            let cache = TempDir::new().unwrap();
            // The first agent compiles, the next finds what the first has kept.
            compiled.extend(first_complete_ms(&mut collector(cache.path()), &mut start()));
            let mut collector = collector(cache.path());
            from_disk.extend(first_complete_ms(&mut collector, &mut start()));
            for _ in 0..WARM_ROUNDS / COLD_ROUNDS {
                loaded.extend(first_complete_ms(&mut collector, &mut start()));
            }
        }
        let figures = [("compiled", compiled), ("from_disk", from_disk), ("loaded", loaded)];
        for (what, mut milliseconds) in figures {
            print(name, &format!("{what}_median"), median(&mut milliseconds), "ms");
            print(name, &format!("{what}_worst"), quantile(&mut milliseconds, 1.0), "ms");
        }
    }
}

/// Samples at a high rate, and has looked at what runs already.
fn collector(cache_dir: &Path) -> Collector {
    let mut config = CollectConfig::at_rate(RATE_HZ);
    config.unwind.cache_dir = Some(cache_dir.to_owned());
    let mut collector = Collector::start(&config).unwrap();
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        collector.wait(Instant::now() + Duration::from_millis(20)).unwrap();
        collector.drain(|_, _| ());
    }
    collector
}

/// Time from exec to the first sample from which on all are complete, in milliseconds. Includes
/// what the loader takes, some hundred microseconds.
fn first_complete_ms(collector: &mut Collector, command: &mut Command) -> Option<f64> {
    let mut running = Running::start(command);
    let pid = running.pid();
    let (mut exec_ns, mut complete_ns) = (None, None);
    let mut exited = false;
    let mut processes = ProcessTable::default();
    let mut unfinished = Vec::new();
    let end = Instant::now() + Duration::from_secs(10);
    while !exited && Instant::now() < end {
        collector.wait(Instant::now() + Duration::from_millis(20)).unwrap();
        collector.drain(|time_ns, event| match event {
            Event::Process(event) => {
                match event {
                    ProcessEvent::Comm { pid: of, exec: true, .. } if of == pid => {
                        exec_ns = Some(time_ns);
                    }
                    ProcessEvent::Exit { pid: of } if of == pid => exited = true,
                    _ => {}
                }
                processes.apply(time_ns, event);
            }
            Event::Sample(sample) if sample.pid == pid && exec_ns.is_some() => {
                match sample.user_stop {
                    Stop::Absent => {}
                    Stop::End => {
                        complete_ns.get_or_insert(time_ns);
                    }
                    Stop::NoTable => complete_ns = None,
                    _ => {}
                }
                if sample.stack_copy.is_some() {
                    let mappings = Arc::clone(&processes.get_mut(pid).mappings);
                    unfinished.push((sample, mappings));
                }
            }
            Event::Sample(_) | Event::OutOfMemory { .. } => {}
        });
        // As the agent does: a table that a stack waits for is loaded.
        for (mut sample, mappings) in unfinished.drain(..) {
            collector.finish(0, &mut sample, &mappings);
        }
    }
    running.wait();
    Some((complete_ns? - exec_ns?) as f64 / 1e6)
}

/// A program with 100,000 rows: 50,000 functions that push a register and pop it again.
fn large_binary(dir: &Path) -> PathBuf {
    let mut text = String::from(".section .note.GNU-stack,\"\",@progbits\n.text\n");
    for number in 0..50_000 {
        let _ = writeln!(
            text,
            "f{number}:\n.cfi_startproc\npush %rbx\n.cfi_adjust_cfa_offset 8\n.cfi_offset rbx, -16\n\
             xor %ebx, %ebx\npop %rbx\n.cfi_adjust_cfa_offset -8\nret\n.cfi_endproc"
        );
    }
    let assembly = dir.join("functions.s");
    let (main, program) = (dir.join("main.c"), dir.join("large"));
    std::fs::write(&assembly, text).unwrap();
    std::fs::write(&main, LARGE_MAIN).unwrap();
    let compiled = Command::new("cc")
        .args(["-O2", "-fomit-frame-pointer", "-o"])
        .args([&program, &main, &assembly])
        .status()
        .unwrap();
    assert!(compiled.success());
    program
}

const LARGE_MAIN: &str = "
#include <stdlib.h>
#include <time.h>
static volatile unsigned long sink;
__attribute__((noipa)) void burn(void) { for (int i = 0; i < 100000; i++) sink += i; }
int main(int argc, char **argv) {
    struct timespec now;
    double end;
    clock_gettime(CLOCK_MONOTONIC, &now);
    end = now.tv_sec + now.tv_nsec / 1e9 + (argc > 1 ? atof(argv[1]) : 1);
    while (now.tv_sec + now.tv_nsec / 1e9 < end) {
        burn();
        clock_gettime(CLOCK_MONOTONIC, &now);
    }
    return 0;
}
";
