//! Complete stacks of programs that have no frame pointers, from programs whose stacks are known.

mod busy;
mod chains;
mod frames;
mod hostile;
mod libraries;

use std::path::Path;
use std::process::{Command, Stdio};

use everflame_tests::profile::{self, Sample, total};
use everflame_tests::program::everflame;
use tempfile::TempDir;

use crate::say;

/// Records a command that is started when sampling has begun, until it ends.
fn record(rate_hz: u64, command: &mut Command) -> Vec<Sample> {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("recorded.pb.gz");
    let recorded = everflame()
        .args(["record", "--duration", "300s", "--rate-hz", &rate_hz.to_string(), "-o"])
        .arg(&output)
        .arg("--")
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    profile::read(&output).1
}

/// Like [`record`], of a workload; without what was sampled before it was executed.
fn record_workload(program: &Path, arguments: &[&str]) -> Vec<Sample> {
    let mut samples = record(997, Command::new(program).args(arguments));
    let name = program.file_name().unwrap().to_str().unwrap();
    samples.retain(|sample| sample.label("comm") == name);
    samples
}

/// The two frames of libc between `main` and `_start`; without libc's debug symbols they have no
/// names.
const LIBC: &str = "?";

/// What lies below `main`.
const MAIN: [&str; 4] = ["main", LIBC, LIBC, "_start"];

/// Whether a stack is exactly these frames.
fn is(stack: &[String], expected: &[&str]) -> bool {
    let fits = |name: &str, expected: &str| match expected {
        LIBC => name.is_empty() || name.starts_with("__libc_start"),
        expected => name == expected,
    };
    stack.len() == expected.len()
        && stack.iter().zip(expected).all(|(name, expected)| fits(name, expected))
}

/// The stack from the first frame of this function on.
fn from<'a>(sample: &'a Sample, function: &str) -> Option<&'a [String]> {
    let at = sample.stack.iter().position(|name| name == function)?;
    Some(&sample.stack[at..])
}

/// How many of the samples with this function have exactly these frames from there on, out of how
/// many. Says on stderr what the others look like.
fn exact(samples: &[Sample], function: &str, expected: &[&str]) -> (i64, i64) {
    let all: Vec<&Sample> = samples.iter().filter(|sample| sample.has(function)).collect();
    let (exact, others): (Vec<&Sample>, Vec<&Sample>) = all
        .iter()
        .partition(|sample| from(sample, function).is_some_and(|stack| is(stack, expected)));
    for other in others.iter().take(10) {
        say(&format!("{} x {}", other.count, brief(&other.stack)));
    }
    (total(exact), total(all))
}

/// Fails unless at least `share` of the samples with the function are exact, and there are at
/// least `at_least` of them.
fn check(what: &str, samples: &[Sample], expected: &[&str], share: f64, at_least: i64) {
    let (exact, all) = exact(samples, expected[0], expected);
    say(&format!("{what}: {exact} of {all} exact ({:.3} %)", percent(exact, all)));
    assert!(all >= at_least, "{what}: {all} of {} samples are in {}", total(samples), expected[0]);
    assert!(exact as f64 >= share * all as f64, "{what}: {exact} of {all} samples are exact");
}

fn percent(part: i64, all: i64) -> f64 {
    100.0 * part as f64 / all.max(1) as f64
}

/// A stack for people: its first and its last frames.
fn brief(stack: &[String]) -> String {
    let name = |name: &String| if name.is_empty() { "??".to_owned() } else { name.clone() };
    let names: Vec<String> = stack.iter().map(name).collect();
    match names.len() {
        0..=12 => names.join(" < "),
        length => format!(
            "{} < ... {} more ... < {}",
            names[..6].join(" < "),
            length - 12,
            names[length - 6..].join(" < ")
        ),
    }
}
