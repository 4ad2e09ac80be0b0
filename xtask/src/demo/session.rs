//! The running programs of a demo: collector, agent, workload, started in that order and
//! stopped in the reverse one, so that what the agent has seen reaches the collector.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::child::Child;
use super::files::Files;
use super::{TICK, say};
use crate::command::{as_root, command};
use crate::programs;

/// The collector's usual port.
const COLLECTOR_PORT: u16 = 4040;
/// What the collector prints before its address when it accepts connections.
const LISTENING: &str = "listening on ";
const START_LIMIT: Duration = Duration::from_secs(30);
/// The agent symbolises and sends its last window before it ends.
const AGENT_PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Session {
    // Dropped from first to last when a demo fails halfway.
    workload: Vec<Child>,
    agent: Child,
    collector: Child,
    server_url: String,
    metrics: SocketAddr,
}

impl Session {
    pub(super) fn start(files: &Files, interrupted: &AtomicBool) -> Result<Self> {
        say("starting the collector");
        let mut collector = Child::start(
            "collector",
            command(programs::path("everflame-server"))
                .arg("--data-dir")
                .arg(files.data_dir())
                .args(["--listen", &collector_address().to_string()]),
            files.log("collector"),
        )?;
        let server_url =
            wait_for("the collector to listen", &mut collector, interrupted, |child| {
                let output = child.output();
                let address = output.split_once(LISTENING)?.1.split_once('\n')?.0;
                Some(format!("http://{}", address.trim()))
            })?;

        say("starting the agent");
        let metrics = free_address()?;
        let mut agent = Child::start(
            "agent",
            &mut agent_command(files, &server_url, metrics)?,
            files.log("agent"),
        )?;
        wait_for("the agent to start", &mut agent, interrupted, |_| {
            TcpStream::connect_timeout(&metrics, TICK).ok()
        })?;

        say("starting the workload");
        let mut workload = Vec::new();
        // Both end with the demo, not by themselves.
        for (name, args) in [("burn", ["1000000", "2"].as_slice()), ("syscalls", &["1000000"])] {
            let mut program = command(files.workload(name));
            workload.push(Child::start(name, program.args(args), files.log(name))?);
        }
        Ok(Self { workload, agent, collector, server_url, metrics })
    }

    pub(super) fn server_url(&self) -> &str {
        &self.server_url
    }

    pub(super) fn metrics_url(&self) -> String {
        format!("http://{}/metrics", self.metrics)
    }

    /// An error, with its last words, when a program has ended.
    pub(super) fn check_running(&mut self) -> Result<()> {
        self.collector.check_running()?;
        self.agent.check_running()?;
        self.workload.iter_mut().try_for_each(Child::check_running)
    }

    /// Stops the workload and then the agent, which sends what it has.
    pub(super) fn stop_agent(&mut self) -> Result<()> {
        self.workload.iter_mut().try_for_each(|child| child.stop(PATIENCE))?;
        self.agent.stop(AGENT_PATIENCE)
    }

    pub(super) fn stop_collector(mut self) -> Result<()> {
        self.collector.stop(PATIENCE)
    }
}

fn agent_command(files: &Files, server_url: &str, metrics: SocketAddr) -> Result<Command> {
    let mut agent = as_root(programs::path("everflame-agent"))?;
    agent.args(["--server", server_url, "--metrics", &metrics.to_string(), "--spool-dir"]);
    agent.arg(files.spool_dir());
    Ok(agent)
}

/// Asks `ready` again and again until it has an answer.
fn wait_for<T>(
    what: &str,
    child: &mut Child,
    interrupted: &AtomicBool,
    ready: impl Fn(&Child) -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(answer) = ready(child) {
            return Ok(answer);
        }
        child.check_running()?;
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted while waiting for {what}");
        }
        if Instant::now() >= deadline {
            bail!(
                "gave up after {} s of waiting for {what}; it said:\n{}",
                START_LIMIT.as_secs(),
                child.last_words()
            );
        }
        thread::sleep(TICK);
    }
}

/// The usual port where it is free, else any.
fn collector_address() -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, COLLECTOR_PORT));
    let port = if TcpListener::bind(usual).is_ok() { COLLECTOR_PORT } else { 0 };
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// An address that nobody listens on now.
fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("cannot find a free port")
}
