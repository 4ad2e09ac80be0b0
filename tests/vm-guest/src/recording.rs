//! Records everything on the machine while the workloads run.
//!
//! The workloads start after the sampling, so that the first samples of a new program count.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use everflame_agent::session::{AllocMode, Session, SessionConfig, Target};
use everflame_profile::{Kind, fold};

use crate::chain::{DEPTH, WORKLOADS};

/// What the agent is asked for; an emulated machine keeps up with it.
pub(crate) const RATE_HZ: u64 = 49;
const LENGTH: Duration = Duration::from_secs(8);

/// What was recorded.
pub(crate) struct Recorded {
    /// Samples of all processes.
    pub(crate) samples: u64,
    /// As many as there should be of CPUs that are always busy.
    pub(crate) expected: u64,
    pub(crate) notes: Vec<String>,
    /// Function names leaf first, the process's name last, with the number of samples.
    pub(crate) stacks: Vec<(Vec<String>, u64)>,
}

/// Runs the workloads to their end.
pub(crate) fn record() -> Result<Recorded> {
    let config = SessionConfig {
        kind: Kind::Cpu,
        rate_hz: RATE_HZ,
        alloc_mode: AllocMode::default(),
        alloc_period_bytes: 1 << 20,
        live_period_bytes: None,
        target: Target::All,
    };
    let session = Session::start(config)?;
    let mut children = Vec::new();
    for workload in WORKLOADS {
        children.push(spawn(workload.program, workload.mode)?);
    }
    thread::sleep(LENGTH);
    for child in &mut children {
        child.kill().context("cannot end the workload")?;
        child.wait().context("cannot wait for the workload")?;
    }
    let recording = session.finish()?;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    // The first value of a sample is how many there were.
    let stacks = fold(&recording.profile, 0)
        .into_iter()
        .map(|(stack, samples)| {
            let frames = stack.rsplit(';').map(str::to_owned).collect();
            (frames, u64::try_from(samples).unwrap_or(0))
        })
        .collect();
    Ok(Recorded {
        samples: recording.samples,
        expected: RATE_HZ * LENGTH.as_secs() * cpus as u64,
        notes: recording.notes,
        stacks,
    })
}

fn spawn(program: &str, mode: &str) -> Result<Child> {
    Command::new(format!("/bin/{program}"))
        .args([&DEPTH.to_string(), "1000", mode])
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}"))
}
