//! `cargo xtask demo`: the whole of everflame on this host, for as long as one watches.
//!
//! A collector on an empty store, the agent as root, and a workload whose profile is known:
//! two threads that spend three quarters of their time in `hot_path`. Whatever ends the
//! demo (Ctrl-C, `--for`, a child that fails), everything it started is stopped and waited
//! for, and everything it wrote is removed, except a `--data-dir` that it was given.

mod child;
mod files;
mod session;
mod span;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::files::Files;
use self::session::Session;
use crate::command::{as_root, command, is_root, run as run_command};
use crate::{programs, setup};

const TICK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// End by itself after this long (30s, 5m) and print the top functions
    #[arg(long = "for", value_name = "DURATION", value_parser = span::parse)]
    length: Option<Duration>,
    /// Keep the collector's data here, instead of in a folder that goes away at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&setup::Args::default())?;
    say("building the agent, the collector and the command line (release)");
    programs::build()?;
    if !is_root() {
        say("the agent needs root: asking sudo");
        run_command(as_root("true")?.stdin(std::process::Stdio::inherit()))?;
    }

    let interrupted = interrupts()?;
    let files = Files::create(args.data_dir.as_deref())?;
    files.compile_workloads()?;
    let mut session = Session::start(&files, &interrupted)?;
    print_where_to_look(&session);

    watch(&mut session, args.length, &interrupted)?;
    say("stopping");
    session.stop_agent()?;
    if args.length.is_some() && !interrupted.load(Ordering::Relaxed) {
        print_top(&session)?;
    }
    session.stop_collector()
}

/// Set when somebody wants the demo to end.
fn interrupts() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot catch signals")?;
    }
    Ok(flag)
}

/// Waits for the end of the demo; an error when a program dies before.
fn watch(session: &mut Session, length: Option<Duration>, interrupted: &AtomicBool) -> Result<()> {
    let end = length.map(|length| Instant::now() + length);
    while !interrupted.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
        session.check_running()?;
        thread::sleep(TICK);
    }
    Ok(())
}

fn print_where_to_look(session: &Session) {
    let everflame = programs::path("everflame");
    let everflame = everflame.display();
    let server = session.server_url();
    let metrics = session.metrics_url();
    say("profiling this host; the first window of 10 s is on its way");
    println!(
        "
  The functions that use most CPU, of this host or of some processes:
    {everflame} top --server {server}
    {everflame} top --server {server} --selector '{{comm=\"burn\"}}'
  A flame graph to open in a browser:
    {everflame} flame --server {server} -o flame.svg
  Who has profiles:
    {everflame} services --server {server}
  The same over HTTP, as JSON; {server}/ lists what can be asked:
    curl '{server}/api/v1/top?kind=cpu&limit=10'
  What the agent says about itself:
    curl {metrics}

  In the sample workload, `burn` spends 75 % of its time in hot_path and 25 % in cold_path,
  and `syscalls` is busy in the kernel.
"
    );
    say("Ctrl-C ends the demo");
}

/// The closing table; an error when the workload's hottest function is not in it, because
/// then the way from the kernel to here is broken somewhere.
fn print_top(session: &Session) -> Result<()> {
    let mut top = command(programs::path("everflame"));
    top.args(["top", "--server", session.server_url(), "--limit", "15"]);
    let output = top.output().context("cannot run `everflame top`")?;
    let table = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("`everflame top` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    say("the top functions of this host");
    println!("\n{table}");
    if !table.contains("hot_path") {
        bail!("the workload's function `hot_path` is not among the top functions");
    }
    Ok(())
}

fn say(line: &str) {
    println!("[demo] {line}");
}
