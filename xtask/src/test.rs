//! `cargo xtask test`: all tests of the workspace, and how many there were.
//!
//! The end-to-end tests start the programs themselves, so those are built first, with the
//! same features as the tests, which makes it one build. Tests that load BPF programs need
//! root: with `CI=true` they fail where that is not permitted, elsewhere they say that they
//! were skipped.

use std::io::{BufRead as _, BufReader};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result};

use crate::command::{self, cargo, line};
use crate::setup;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to `cargo test`: a filter, `-p everflame-profile`, `-- --nocapture` ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::require(&setup::Args { tests: true, ..setup::Args::default() })?;
    command::run(cargo().args(["build", "--workspace", "--bins", "--tests"]))?;

    let mut test = cargo();
    test.args(["test", "--no-fail-fast"]);
    if !args.cargo_args.iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package")) {
        test.arg("--workspace");
    }
    test.args(&args.cargo_args);
    let mut running = test
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", line(&test)))?;

    let mut sum = Counts::default();
    if let Some(output) = running.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.context("cannot read what cargo test prints")?;
            println!("{line}");
            sum.add_closing_line(&line);
        }
    }
    let status = running.wait().context("cannot wait for cargo test")?;
    println!(
        "\nall suites: {} passed; {} failed; {} ignored; in {} suites",
        sum.passed, sum.failed, sum.ignored, sum.suites
    );
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// The sum of what each suite says at its end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    suites: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`.
    fn add_closing_line(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.suites += 1;
        let parts = result.split_once(". ").map_or("", |(_, counts)| counts).split("; ");
        for (count, what) in parts.filter_map(|part| part.split_once(' ')) {
            let Ok(count) = count.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn closing_lines_add_up_and_other_lines_do_not_count() {
        let mut sum = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test tests::prints_3_passed ... ok",
            "test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.10s",
        ] {
            sum.add_closing_line(line);
        }
        assert_eq!(sum, Counts { suites: 2, passed: 3, failed: 4, ignored: 1 });
    }
}
