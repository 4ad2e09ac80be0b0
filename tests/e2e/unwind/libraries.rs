//! Libraries and processes that come and go: no wrong frames, and no memory that stays behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use everflame_tests::profile::{Sample, total};
use everflame_tests::program::{Agent, Running, Server, wait_for};
use everflame_tests::workload::{compile_with, workload};
use tempfile::TempDir;

use super::{MAIN, brief, is, percent, record_workload, say};
use crate::take_turn;

const VARIANTS: usize = 4;

/// Libraries whose code and frames lie differently, and `copies` of each under other names.
fn plugins(dir: &Path, copies: usize) -> Vec<PathBuf> {
    let plugin = |copy: usize, variant: usize| {
        let path = dir.join(format!("copy_{copy}_plugin_{variant}.so"));
        if copy == 0 {
            compile_with("plugin", &[&format!("-DVARIANT={variant}")], &path);
        } else {
            std::fs::copy(dir.join(format!("copy_0_plugin_{variant}.so")), &path).unwrap();
        }
        path
    };
    let of_copy = |copy| (0..VARIANTS).map(move |variant| plugin(copy, variant));
    (0..copies).flat_map(of_copy).collect()
}

/// Whether each frame of the stack can be where it is.
fn is_possible(stack: &[String]) -> bool {
    let Some(at) = stack.iter().position(|name| name.starts_with("plugin_")) else { return true };
    let variant = stack[at].trim_start_matches("plugin_").chars().next().unwrap();
    let names = ["leaf", "middle", "entry"].map(|part| format!("plugin_{variant}_{part}"));
    let chain: Vec<&str> =
        names.iter().map(String::as_str).chain(["call_plugin"]).chain(MAIN).collect();
    let from = chain.iter().position(|name| *name == stack[at]);
    from.is_some_and(|from| is(&stack[at..], &chain[from..]))
}

#[test]
fn libraries_that_come_and_go_leave_no_wrong_frames() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let plugins = plugins(dir.path(), 3);
    let mut arguments = vec!["1000"];
    arguments.extend(plugins.iter().map(|path| path.to_str().unwrap()));
    let samples = record_workload(&workload("dlopen"), &arguments);

    let with_plugin = |sample: &&Sample| sample.stack.iter().any(|name| name.contains("plugin_"));
    let in_plugins: Vec<&Sample> = samples.iter().filter(with_plugin).collect();
    let wrong: Vec<&Sample> =
        in_plugins.iter().filter(|sample| !is_possible(&sample.stack)).copied().collect();
    for sample in wrong.iter().take(10) {
        say(&format!("{} x {}", sample.count, brief(&sample.stack)));
    }
    let (in_plugins, wrong) = (total(in_plugins), total(wrong));
    say(&format!("libraries: {wrong} wrong of {in_plugins} ({:.3} %)", percent(wrong, in_plugins)));
    assert!(in_plugins > 800, "{in_plugins} of {} samples are in plugins", total(&samples));
    assert_eq!(wrong, 0);

    // The rest is the loader at work, also from main on; or the kernel at the program's end.
    let unnamed = samples.iter().filter(|sample| {
        let from_main = sample.stack.iter().any(|name| name == "call_plugin");
        from_main && sample.stack.last().is_none_or(|last| last != "_start")
    });
    let unnamed = total(unnamed);
    assert!(unnamed as f64 <= 0.01 * total(&samples) as f64, "{unnamed} do not reach _start");
}

/// Runs `dlopen`, up to the moment when it has finished, while it still holds its process.
fn load_plugins(times: usize, plugins: &[PathBuf]) {
    let mut command = Command::new(workload("dlopen"));
    command.arg(times.to_string()).args(plugins).stdout(Stdio::null());
    assert!(Running::start(&mut command).wait().success());
}

const MEMORY: &str = "everflame_agent_bpf_map_bytes";

/// What the agent holds once it had time to notice what has ended.
fn settled_memory(agent: &Agent) -> f64 {
    let mut last = -1.0;
    let mut same = 0;
    wait_for("memory of the maps settles", || {
        let now = agent.metric(MEMORY);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        std::thread::sleep(std::time::Duration::from_millis(400));
        same >= 10
    });
    last
}

#[test]
fn libraries_and_processes_that_are_gone_take_no_bpf_memory() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let plugins = plugins(dir.path(), 4);
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let arguments = ["--window", "2s", "--cpu-rate-hz", "97"];
    let agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    let brief = |times| {
        for _ in 0..times {
            let mut deep = Command::new(workload("deep"));
            deep.args(["22", "0.02"]).stdout(Stdio::null());
            assert!(Running::start(&mut deep).wait().success());
        }
    };
    // Tables are kept for the next who needs them; so each library and program once first.
    load_plugins(plugins.len(), &plugins);
    brief(1);
    let before = settled_memory(&agent);
    load_plugins(1000, &plugins);
    brief(200);
    let after = settled_memory(&agent);
    say(&format!("memory of BPF maps: {before} before, {after} after"));
    assert!(before > 0.0, "{}", agent.metrics());
    assert!(after <= before, "{before} before, {after} after");
}
