//! `cargo xtask bench`: what everflame costs, measured on this machine.
//!
//! The benches print their own results; docs/benchmarks.md explains each figure.

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::command::{self, cargo};
use crate::{programs, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure
    what: What,

    /// Only these groups of its figures, where it has groups: those of `unwind`, `offcpu`, `alloc` and `io-net`
    /// are in docs/benchmarks.md
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// CPU and memory of the agent, slowdown of the host, symbolisation (needs root)
    Agent,
    /// BPF time of a sample, unwind tables, completeness of stacks (needs root)
    Unwind,
    /// What following waits costs programs that switch all the time (needs root and perf)
    Offcpu,
    /// What seeing allocations costs programs that fork and fault, malloc, and redis (needs root)
    Alloc,
    /// What following requests to disks costs programs that make as many as they can (needs root and fio)
    IoNet,
    /// Ingest rate, latency of acknowledgements, bytes on disk
    Server,
    /// How fast versions are compared, and in simulated fleets what is found, and how often what is not there
    Compare,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::require(&setup::Args::default())?;
    let groups = &args.groups;
    let has_groups = !matches!(args.what, What::Agent | What::Server | What::Compare);
    ensure!(groups.is_empty() || has_groups, "this bench has no groups: leave out {groups:?}");
    match args.what {
        What::Agent => {
            build_programs()?;
            bench("everflame-tests", "agent", &[])?;
            bench("everflame-agent", "symbolize", &[])
        }
        What::Unwind => {
            setup::require(&setup::Args { tests: true, ..setup::Args::default() })?;
            build_programs()?;
            bench("everflame-tests", "unwind", groups)
        }
        What::Offcpu => {
            build_programs()?;
            bench("everflame-tests", "offcpu", groups)
        }
        What::Alloc => {
            setup::require(&setup::Args { tests: true, ..setup::Args::default() })?;
            build_programs()?;
            command::run(cargo().args([
                "build",
                "--profile",
                "preload",
                "--package",
                "everflame-alloc",
            ]))?;
            // A program of its own, as it needs nothing of the rest.
            let (pair, others): (Vec<_>, Vec<_>) =
                groups.iter().cloned().partition(|group| group == "pair");
            if groups.is_empty() || !others.is_empty() {
                bench("everflame-tests", "alloc", &others)?;
            }
            if groups.is_empty() || !pair.is_empty() {
                bench("everflame-alloc", "pair", &[])?;
            }
            Ok(())
        }
        What::IoNet => {
            setup::require(&setup::Args { tests: true, ..setup::Args::default() })?;
            build_programs()?;
            bench("everflame-tests", "io_net", groups)
        }
        What::Server => bench("everflame-server", "ingest", &[]),
        What::Compare => {
            // How fast the collector is, then how good.
            bench("everflame-server", "compare", &[])?;
            bench("everflame-compare", "power", &[])
        }
    }
}

/// The benches measure the programs as people run them, and start them themselves.
fn build_programs() -> Result<()> {
    programs::build()?;
    command::run(cargo().args(["build", "--release", "--workspace", "--bins"]))
}

fn bench(package: &str, name: &str, groups: &[String]) -> Result<()> {
    command::run(cargo().args(["bench", "--package", package, "--bench", name, "--"]).args(groups))
}
