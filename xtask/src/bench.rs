//! `cargo xtask bench`: what everflame costs, measured on this machine.
//!
//! The benches print their own results; docs/benchmarks.md explains each figure.

use anyhow::Result;
use clap::ValueEnum;

use crate::command::{self, cargo};
use crate::{programs, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure
    what: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// CPU and memory of the agent, slowdown of the host, symbolisation (needs root)
    Agent,
    /// Ingest rate, latency of acknowledgements, bytes on disk
    Server,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&setup::Args::default())?;
    match args.what {
        What::Agent => {
            // It measures the programs as people run them.
            programs::build()?;
            // The bench starts the programs themselves.
            command::run(cargo().args(["build", "--release", "--workspace", "--bins"]))?;
            bench("everflame-tests", "agent")?;
            bench("everflame-agent", "symbolize")
        }
        What::Server => bench("everflame-server", "ingest"),
    }
}

fn bench(package: &str, name: &str) -> Result<()> {
    command::run(cargo().args(["bench", "--package", package, "--bench", name]))
}
