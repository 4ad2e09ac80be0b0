//! Runs one kernel in qemu, with its console in a file, until it powers off.
//!
//! A guest that hangs is killed after the timeout; one that panics ends by itself, because it
//! is told to reboot and qemu not to.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::machine::Machine;
use crate::command::{command, line};

const MEMORY: &str = "1G";
const CPUS: &str = "2";

/// What to boot.
pub(super) struct Run {
    pub(super) machine: Machine,
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    /// Where the console's output goes.
    pub(super) console: PathBuf,
    pub(super) timeout: Duration,
    /// Whether it also goes to our own.
    pub(super) show: bool,
}

/// How it went, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    PoweredOff(Duration),
    TimedOut(Duration),
}

/// Boots a kernel and waits for its end.
pub(super) fn run(run: &Run) -> Result<Ended> {
    let (qemu, _) = run.machine.qemu();
    let mut command = command(qemu);
    command.args(run.machine.board());
    command.args(["-accel", "tcg,thread=single", "-smp", CPUS, "-m", MEMORY]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-nographic"]);
    command.args(["-serial", "stdio", "-kernel"]).arg(&run.kernel);
    command.arg("-initrd").arg(&run.initramfs).arg("-append");
    command.arg(format!("console={} quiet panic=-1", run.machine.console()));
    let mut qemu = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", line(&command)))?;
    let console = File::create(&run.console)
        .with_context(|| format!("cannot write {}", run.console.display()))?;
    let lines = read_lines(&mut qemu);
    let started = Instant::now();
    let ended = copy(&lines, console, started, run);
    if !matches!(ended, Ok(Ended::PoweredOff(_))) {
        qemu.kill().context("cannot end qemu")?;
    }
    let status = qemu.wait().context("cannot wait for qemu")?;
    if matches!(ended, Ok(Ended::PoweredOff(_))) && !status.success() {
        bail!("`{}` failed: {status}", line(&command));
    }
    ended
}

/// Reads on a thread of its own, which ends with qemu.
fn read_lines(qemu: &mut Child) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, lines) = channel();
    if let Some(output) = qemu.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    lines
}

fn copy(
    lines: &Receiver<io::Result<Vec<u8>>>,
    mut console: File,
    started: Instant,
    run: &Run,
) -> Result<Ended> {
    loop {
        let left = run.timeout.saturating_sub(started.elapsed());
        match lines.recv_timeout(left) {
            Ok(text) => {
                let text = text.context("cannot read the console")?;
                let text = String::from_utf8_lossy(&text);
                let text = text.trim_end_matches('\r');
                let at = started.elapsed().as_secs_f64();
                writeln!(console, "{at:7.2} {text}")
                    .with_context(|| format!("cannot write {}", run.console.display()))?;
                if run.show {
                    println!("{at:7.2} {text}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(Ended::PoweredOff(started.elapsed())),
            Err(RecvTimeoutError::Timeout) => return Ok(Ended::TimedOut(started.elapsed())),
        }
    }
}
