//! Deep chains of calls: every frame, in order, from the first sample on.

use std::process::Command;

use everflame_tests::profile::{Sample, total};
use everflame_tests::workload::workload;
use tempfile::TempDir;

use super::{LIBC, MAIN, brief, check, exact, from, is, percent, record, record_workload};
use crate::say;
use crate::take_turn;

/// The names of a stack of `deep`, leaf first: the leaf function, frame_001 and so on.
fn chain(depth: usize, leaf: &str, below: &[&str]) -> Vec<String> {
    let frames = (1..=depth - 1 - MAIN.len()).map(|number| format!("frame_{number:03}"));
    let below = below.iter().map(|&name| name.to_owned());
    std::iter::once(leaf.to_owned()).chain(frames).chain(below).collect()
}

fn check_deep(depth: usize, mode: &str) {
    let Some(_turn) = take_turn() else { return };
    // Until the program's table is there, some 30 ms with a debug build of the agent on a busy machine, copies of
    // deep stacks do not reach their ends.
    let seconds = if depth > 100 { "12" } else { "6" };
    let samples = record_workload(&workload("deep"), &[&depth.to_string(), seconds, mode]);
    let chain = chain(depth, &format!("leaf_{mode}"), &MAIN);
    let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
    check(&format!("{depth} frames, {mode} mode"), &samples, &chain, 0.995, 1000);

    // Prologues and epilogues: the stack begins somewhere in the chain and goes on to its end.
    let between: Vec<&Sample> =
        samples.iter().filter(|sample| sample.stack[0].starts_with("frame_")).collect();
    let (right, wrong): (Vec<&Sample>, Vec<&Sample>) = between.iter().partition(|sample| {
        let at = chain.iter().position(|name| *name == sample.stack[0]);
        at.is_some_and(|at| is(&sample.stack, &chain[at..]))
    });
    say(&format!("{} of {} exact in prologues and epilogues", total(right), total(between)));
    assert!(total(wrong.iter().copied()) <= 2, "{wrong:#?}");
}

#[test]
fn chain_of_22_frames_is_exact_in_user_mode() {
    check_deep(22, "user");
}

#[test]
fn chain_of_200_frames_is_exact_in_user_mode() {
    check_deep(200, "user");
}

#[test]
fn chain_of_22_frames_is_exact_in_kernel_mode() {
    check_deep(22, "kernel");
}

#[test]
fn chain_of_200_frames_is_exact_in_kernel_mode() {
    check_deep(200, "kernel");
}

#[test]
fn chain_of_a_thread_ends_where_threads_begin() {
    let Some(_turn) = take_turn() else { return };
    // One thread, which leaves a CPU to the agent: with one on each CPU, a debug build of it may need
    // a quarter of a second for the program's table, and until then the copies of such deep stacks
    // do not reach their ends. A release build does not.
    let samples = record_workload(&workload("deep"), &["100", "15", "user", "1"]);
    let chain = chain(100, "leaf_user", &["thread"]);
    let is_complete = |sample: &Sample| {
        let stack = from(sample, "leaf_user").unwrap();
        // Below the thread's function: start_thread and clone3, if libc's are named.
        let below = stack.strip_prefix(&chain[..]).unwrap_or_default();
        below.len() == 2 && (below[1].is_empty() || below[1].contains("clone"))
    };
    let (complete, others): (Vec<&Sample>, Vec<&Sample>) = samples
        .iter()
        .filter(|sample| sample.has("leaf_user"))
        .partition(|sample| is_complete(sample));
    for other in others.iter().take(10) {
        say(&format!("{} x {}", other.count, brief(&other.stack)));
    }
    let (complete, all) = (total(complete.iter().copied()), total(complete) + total(others));
    say(&format!("threads: {complete} of {all} exact ({:.3} %)", percent(complete, all)));
    assert!(all > 1000 && complete as f64 >= 0.995 * all as f64, "{complete} of {all}");
}

#[test]
fn stack_that_is_too_deep_keeps_its_leaf_side() {
    let Some(_turn) = take_turn() else { return };
    let samples = record_workload(&workload("deep"), &["600", "3", "user"]);
    let chain = chain(600, "leaf_user", &MAIN);
    let in_leaf: Vec<&Sample> = samples.iter().filter(|sample| sample.has("leaf_user")).collect();
    let mut long_enough = 0;
    for sample in &in_leaf {
        let stack = from(sample, "leaf_user").unwrap();
        let prefix: Vec<&str> = chain[..stack.len()].iter().map(String::as_str).collect();
        assert!(is(stack, &prefix), "{stack:?}");
        long_enough += if stack.len() >= 256 { sample.count } else { 0 };
    }
    // The first samples, which come before the table does, have been copied, and end where the
    // copy of the stack ends.
    let all = total(in_leaf);
    say(&format!("{long_enough} of {all} have at least 256 frames"));
    assert!(all > 500 && long_enough as f64 >= 0.99 * all as f64, "{long_enough} of {all}");
}

/// Programs that begin after the sampling and are gone after 100 ms, one after the other.
#[test]
fn programs_that_live_for_100_ms_have_complete_stacks_from_the_first_sample_on() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let times = dir.path().join("times");
    let script = format!(
        "for i in $(seq 100); do {} 22 0.1 > /dev/null; done; times > {}",
        workload("deep").display(),
        times.display()
    );
    // Not more than the stacks that may be copied in a second, while tables are on their way.
    let rate_hz = 119;
    let mut samples = record(rate_hz, Command::new("sh").args(["-c", &script]));
    samples.retain(|sample| sample.label("comm") == "deep");

    let chain = chain(22, "leaf_user", &MAIN);
    let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
    check("programs of 100 ms", &samples, &chain, 0.995, 400);

    // None is missing, so the first is not either.
    let expected = children_seconds(&std::fs::read_to_string(&times).unwrap()) * rate_hz as f64;
    let taken = total(&samples) as f64;
    say(&format!("{taken} samples, {expected:.0} expected"));
    assert!(taken > 0.97 * expected - 50.0, "{taken} samples, {expected:.0} expected");

    // Each program's own share: the worst one.
    let mut pids: Vec<&str> = samples.iter().map(|sample| sample.label("pid")).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 100, "each program was seen");
    for pid in pids {
        let of_pid: Vec<Sample> =
            samples.iter().filter(|sample| sample.label("pid") == pid).cloned().collect();
        let (exact, all) = exact(&of_pid, "leaf_user", &chain);
        assert!(all - exact <= 1, "process {pid}: {exact} of {all}");
    }
    // What is not in the leaf function is the start and the end of a program. Whatever is in user
    // mode there has a beginning too.
    let complete = samples.iter().filter(|sample| {
        let last = sample.stack.last().unwrap();
        last == "_start" || is(std::slice::from_ref(last), &[LIBC])
    });
    let complete = total(complete);
    say(&format!(
        "{complete} of {taken} samples end at _start, the others have kernel frames only"
    ));
}

/// CPU time of a shell's children, from the second line of its `times`: `0m1.5s 0m0.2s`.
fn children_seconds(times: &str) -> f64 {
    let seconds = |time: &str| -> f64 {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
        minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
    };
    times.lines().nth(1).unwrap().split_whitespace().map(seconds).sum()
}
