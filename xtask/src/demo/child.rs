//! A program that the demo started, and that is gone when the demo is.
//!
//! Each child is the leader of a process group of its own, so that Ctrl-C on the terminal
//! reaches only the demo, which then stops them one after the other: the agent has to send
//! what it has while the collector still listens.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{self, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::{ask, command, is_root, line};

const POLL: Duration = Duration::from_millis(50);
/// The kernel ends a killed process as soon as it is out of a system call.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const LOG_LINES: usize = 15;

/// A running program. Dropping it stops it.
pub(super) struct Child {
    name: &'static str,
    process: process::Child,
    log: PathBuf,
    /// It was started through sudo, so it takes sudo to signal it.
    is_foreign: bool,
}

impl Child {
    /// Starts `command` with its output going to the file `log`.
    pub(super) fn start(name: &'static str, command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let same_file =
            file.try_clone().with_context(|| format!("cannot share {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(same_file).process_group(0);
        let is_foreign = !is_root() && command.get_program().to_string_lossy().ends_with("sudo");
        let process =
            command.spawn().with_context(|| format!("cannot start `{}`", line(command)))?;
        Ok(Self { name, process, log, is_foreign })
    }

    /// Everything it has printed so far.
    pub(super) fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// An error with its last words when it has ended although it should not have.
    pub(super) fn check_running(&mut self) -> Result<()> {
        let ended = self.process.try_wait().with_context(|| format!("lost the {}", self.name))?;
        if let Some(status) = ended {
            bail!("the {} ended early ({status}); it said:\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Asks it to end and waits; an error when it had to be killed.
    pub(super) fn stop(&mut self, patience: Duration) -> Result<()> {
        if self.has_ended()? {
            return Ok(());
        }
        self.signal(Signal::TERM);
        if self.ends_within(patience)? {
            return Ok(());
        }
        self.signal(Signal::KILL);
        if !self.ends_within(KILL_PATIENCE)? {
            bail!("the {} does not end, even when killed", self.name);
        }
        bail!(
            "the {} did not end within {patience:?} of SIGTERM and was killed; it said:\n{}",
            self.name,
            self.last_words()
        );
    }

    fn ends_within(&mut self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        while !self.has_ended()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            thread::sleep(POLL);
        }
        Ok(true)
    }

    fn has_ended(&mut self) -> Result<bool> {
        let status: Option<ExitStatus> =
            self.process.try_wait().with_context(|| format!("lost the {}", self.name))?;
        Ok(status.is_some())
    }

    /// The process cannot be another one by now: until we have waited for it, its pid is kept.
    fn signal(&self, signal: Signal) {
        if self.is_foreign {
            // sudo hands SIGTERM on to its child; SIGKILL has to go to the whole group.
            let (name, pid) = match signal {
                Signal::KILL => ("-KILL", format!("-{}", self.process.id())),
                _ => ("-TERM", self.process.id().to_string()),
            };
            ask(command("sudo").args(["-n", "kill", name, "--", &pid]));
        } else if let Err(error) = kill_process(Pid::from_child(&self.process), signal) {
            eprintln!("[demo] cannot signal the {}: {error}", self.name);
        }
    }

    /// The end of what it printed.
    pub(super) fn last_words(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES);
        lines[from..].iter().map(|line| format!("    {line}\n")).collect()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Duration::from_secs(10)) {
            eprintln!("[demo] {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::files::Files;

    fn start(files: &Files, script: &str) -> Child {
        let child = Child::start("script", command("sh").args(["-c", script]), files.log("script"))
            .expect("sh exists");
        // The shell has set its traps when it says so.
        while !child.output().contains("ready") {
            thread::sleep(POLL);
        }
        child
    }

    #[test]
    fn a_child_is_stopped_and_waited_for() {
        let files = Files::create(None).expect("the temporary folder can be written");
        let mut child = start(&files, "echo ready; exec sleep 1000");
        child.check_running().expect("it sleeps");
        child.stop(Duration::from_secs(60)).expect("sleep ends on SIGTERM");
        assert!(child.check_running().is_err());
        child.stop(Duration::ZERO).expect("stopping twice is fine");
    }

    #[test]
    fn a_child_that_ignores_sigterm_is_killed_and_reported() {
        let files = Files::create(None).expect("the temporary folder can be written");
        let mut child = start(&files, "trap '' TERM; echo ready; while :; do sleep 0.1; done");
        let error = child.stop(Duration::from_millis(300)).expect_err("it had to be killed");
        assert!(error.to_string().contains("was killed"), "{error}");
        assert!(child.has_ended().expect("it can be waited for"));
    }

    #[test]
    fn a_child_that_ends_early_is_reported_with_its_last_words() {
        let files = Files::create(None).expect("the temporary folder can be written");
        let mut child = start(&files, "echo ready; echo 'no BTF' >&2; exit 71");
        assert!(child.ends_within(Duration::from_secs(60)).expect("it can be waited for"));
        let error = child.check_running().expect_err("it has ended").to_string();
        assert!(error.contains("exit status: 71") && error.contains("no BTF"), "{error}");
    }
}
