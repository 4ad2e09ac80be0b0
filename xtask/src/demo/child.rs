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
        if !self.ends_within(patience)? {
            bail!("the {} does not end, even when killed", self.name);
        }
        bail!(
            "the {} did not end within {} s of SIGTERM and was killed; it said:\n{}",
            self.name,
            patience.as_secs(),
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
