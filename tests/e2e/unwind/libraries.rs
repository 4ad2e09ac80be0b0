//! Libraries and processes that come and go: no wrong frames, and no memory that stays behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use everflame_tests::profile::{Sample, total};
use everflame_tests::program::{Agent, Running, Server, wait_for};
use everflame_tests::workload::{compile_with, workload};
use tempfile::TempDir;

use super::{MAIN, brief, is, percent, record};
use crate::say;
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

/// What is to be said of a stack with a plugin's function.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Complete,
    /// All frames are right, and some are missing.
    Truncated,
    Wrong,
}

/// Looks at the stack from its first plugin function on. `None` if there is none.
fn judge(stack: &[String]) -> Option<Verdict> {
    let at = stack.iter().position(|name| name.starts_with("plugin_"))?;
    let stack = &stack[at..];
    let variant = stack[0].trim_start_matches("plugin_").chars().next()?;
    let names = ["leaf", "middle", "entry"].map(|part| format!("plugin_{variant}_{part}"));
    let chain: Vec<&str> =
        names.iter().map(String::as_str).chain(["call_plugin"]).chain(MAIN).collect();
    let Some(from) = chain.iter().position(|name| *name == stack[0]) else {
        return Some(Verdict::Wrong);
    };
    let chain = &chain[from..];
    Some(if is(stack, chain) {
        Verdict::Complete
    } else if is(stack, &chain[..stack.len().min(chain.len())]) {
        Verdict::Truncated
    } else {
        Verdict::Wrong
    })
}

/// Records `dlopen` with 1,000 loads; the share of complete stacks among those with a plugin.
fn check_no_wrong_frames(rate_hz: u64, at_least: i64) -> f64 {
    let dir = TempDir::new().unwrap();
    let plugins = plugins(dir.path(), 3);
    let mut samples = record(rate_hz, Command::new(workload("dlopen")).arg("1000").args(&plugins));
    samples.retain(|sample| sample.label("comm") == "dlopen");
    let of = |verdict: Verdict| -> Vec<&Sample> {
        samples.iter().filter(|sample| judge(&sample.stack).as_ref() == Some(&verdict)).collect()
    };
    let (complete, truncated, wrong) =
        (of(Verdict::Complete), of(Verdict::Truncated), of(Verdict::Wrong));
    for sample in truncated.iter().chain(&wrong).take(20) {
        say(&format!("{} x {}", sample.count, brief(&sample.stack)));
    }
    let (complete, truncated, wrong) = (total(complete), total(truncated), total(wrong));
    let all = complete + truncated + wrong;
    say(&format!(
        "libraries at {rate_hz} Hz: {wrong} wrong, {truncated} truncated, {complete} complete \
         ({:.3} %)",
        percent(complete, all)
    ));
    assert!(all >= at_least, "{all} of {} samples are in plugins", total(&samples));
    assert_eq!(wrong, 0);
    // The rest is the loader at work, or the kernel at the program's begin and end.
    let loading: Vec<&Sample> = samples
        .iter()
        .filter(|sample| judge(&sample.stack).is_none() && sample.has("call_plugin"))
        .collect();
    let broken =
        loading.iter().filter(|sample| sample.stack.last().is_none_or(|last| last != "_start"));
    let (broken, loading) = (total(broken.copied()), total(loading.iter().copied()));
    say(&format!("{broken} of {loading} stacks of the loader do not reach _start"));
    complete as f64 / all as f64
}

#[test]
fn libraries_that_come_and_go_leave_no_wrong_frames() {
    let Some(_turn) = take_turn() else { return };
    // Each library is there for some milliseconds, and its table comes late or never: this is
    // about what is made of that.
    check_no_wrong_frames(1997, 1000);
}

#[test]
fn most_stacks_of_libraries_that_come_and_go_are_complete() {
    let Some(_turn) = take_turn() else { return };
    // Each is there for some milliseconds, and in the first of them walks do not know of it:
    // of a library in the place of another, stacks are cut off behind its frame.
    let complete = check_no_wrong_frames(119, 150);
    assert!(complete >= 0.6, "{complete}");
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
    // Others on this machine start programs too. What stays behind would do so each time.
    let mut grown = Vec::new();
    while grown.len() < 3 && grown.last().is_none_or(|bytes| *bytes > 0.0) {
        let before = settled_memory(&agent);
        assert!(before > 0.0, "{}", agent.metrics());
        load_plugins(1000, &plugins);
        brief(200);
        grown.push(settled_memory(&agent) - before);
    }
    say(&format!("memory of BPF maps grew by {grown:?} bytes"));
    assert!(grown.last().is_some_and(|bytes| *bytes <= 0.0), "{grown:?}");
}
