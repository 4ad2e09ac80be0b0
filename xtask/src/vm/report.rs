//! What a guest said: its checks, and the table of all kernels.
//!
//! `everflame-vm-guest` prints `VM: ok CHECK: detail`, `VM: fail CHECK: detail` and
//! `VM: note detail`; the line `VM: done` says that nothing is missing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::qemu::Ended;

/// How many lines of the console are shown of a guest that did not get to its end.
const LAST_LINES: usize = 25;

/// One kernel's run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    name: String,
    ended: Ended,
    console: PathBuf,
    checks: Vec<Check>,
    notes: Vec<String>,
    is_complete: bool,
    last_lines: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Check {
    name: String,
    passed: bool,
    detail: String,
}

impl Report {
    /// Reads the console of a run that has ended.
    pub(super) fn read(name: &str, ended: Ended, console: &Path) -> Result<Self> {
        let text = fs::read_to_string(console)
            .with_context(|| format!("cannot read {}", console.display()))?;
        let mut report = Self {
            name: name.to_owned(),
            ended,
            console: console.to_owned(),
            checks: Vec::new(),
            notes: Vec::new(),
            is_complete: false,
            last_lines: Vec::new(),
        };
        for line in text.lines() {
            report.add(line);
        }
        let from = text.lines().count().saturating_sub(LAST_LINES);
        report.last_lines = text.lines().skip(from).map(str::to_owned).collect();
        Ok(report)
    }

    /// A line may begin with the time and with what the kernel said at the same moment.
    fn add(&mut self, line: &str) {
        let Some((_, said)) = line.split_once("VM: ") else { return };
        let (kind, rest) = said.split_once(' ').unwrap_or((said, ""));
        match kind {
            "ok" | "fail" => {
                let (name, detail) = rest.split_once(": ").unwrap_or((rest, ""));
                self.checks.push(Check {
                    name: name.to_owned(),
                    passed: kind == "ok",
                    detail: detail.to_owned(),
                });
            }
            "note" => self.notes.push(rest.to_owned()),
            "done" => self.is_complete = true,
            _ => {}
        }
    }

    /// Whether the guest got to its end and all that it checked was right.
    pub(super) fn passed(&self) -> bool {
        self.is_complete
            && matches!(self.ended, Ended::PoweredOff(_))
            && !self.checks.is_empty()
            && self.checks.iter().all(|check| check.passed)
    }

    /// Each check with what the guest said about it.
    pub(super) fn print(&self) {
        for check in &self.checks {
            let mark = if check.passed { "ok  " } else { "FAIL" };
            println!("  {mark} {:<15} {}", check.name, check.detail);
        }
        for note in &self.notes {
            println!("       {note}");
        }
        match self.ended {
            Ended::TimedOut(after) => println!("  FAIL it did not end within {after:.0?}"),
            Ended::PoweredOff(after) if !self.is_complete => {
                println!("  FAIL it ended after {after:.1?} without saying that it was done");
            }
            Ended::PoweredOff(_) => {}
        }
        if !self.is_complete {
            for line in &self.last_lines {
                println!("       | {line}");
            }
        }
        if !self.passed() {
            println!("       all that it said is in {}", self.console.display());
        }
    }
}

/// Kernels by checks.
pub(super) fn print_table(reports: &[Report]) {
    let mut names: Vec<&str> = Vec::new();
    for check in reports.iter().flat_map(|report| &report.checks) {
        if !names.contains(&check.name.as_str()) {
            names.push(&check.name);
        }
    }
    print!("\n{:<14}{:>8}", "kernel", "seconds");
    for name in &names {
        print!("  {name}");
    }
    println!();
    for report in reports {
        let (Ended::PoweredOff(after) | Ended::TimedOut(after)) = report.ended;
        print!("{:<14}{:>8.1}", report.name, after.as_secs_f64());
        for name in &names {
            let cell = match report.checks.iter().find(|check| check.name == *name) {
                Some(check) if check.passed => "ok",
                Some(_) => "FAIL",
                None => "-",
            };
            print!("  {cell:<width$}", width = name.len());
        }
        println!("{}", if report.passed() { "" } else { "  <- failed" });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(ended: Ended, lines: &[&str]) -> Report {
        let mut report = Report {
            name: String::new(),
            ended,
            console: PathBuf::new(),
            checks: Vec::new(),
            notes: Vec::new(),
            is_complete: false,
            last_lines: Vec::new(),
        };
        for line in lines {
            report.add(line);
        }
        report
    }

    #[test]
    fn all_checks_and_the_end_make_a_pass() {
        let off = Ended::PoweredOff(Duration::ZERO);
        let late = Ended::TimedOut(Duration::ZERO);
        let check = |ended, lines: &[&str], expected| {
            assert_eq!(report(ended, lines).passed(), expected, "{lines:?}");
        };
        let ok = "   1.00 [    0.5] random: crng VM: ok load: in 1 s";
        check(off, &[ok, "VM: done"], true);
        check(late, &[ok, "VM: done"], false);
        check(off, &[ok], false);
        check(off, &["VM: done"], false);
        check(off, &[ok, "   2.00 VM: fail samples: none", "VM: done"], false);
    }

    #[test]
    fn checks_have_names_and_details() {
        let report = report(
            Ended::PoweredOff(Duration::ZERO),
            &["VM: fail load: the kernel refuses: no", "VM: note kernel 5.10"],
        );
        let check = Check {
            name: "load".to_owned(),
            passed: false,
            detail: "the kernel refuses: no".to_owned(),
        };
        assert_eq!(report.checks, [check]);
        assert_eq!(report.notes, ["kernel 5.10"]);
    }
}
