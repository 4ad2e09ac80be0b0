//! The arguments of `everflame gate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use everflame_compare::Rule;

use super::{ServerArg, SidesArgs};
use crate::command;
use crate::format::{Format, one_of};

const EXAMPLES: &str = "\
Examples:
  everflame gate --service checkout --from v41 --to v42 --fail-on cpu:+2%
  everflame gate --service checkout --fail-on cpu:+2% --fail-on lock:+10% --format markdown
  everflame gate --from 'base/*.pb.gz' --to 'pr/*.pb.gz' --fail-on cpu.total:+5%

A limit is KIND:+N%: the gate fails when a function, or everything, costs significantly more than
N % more than it did. KIND.total:+N% looks at everything only, KIND/REGEX/:+N% at functions whose
names match. Costs are per second of a host, so let both versions have the same load; what only
moved between functions never fails.

Exit codes: 0 when nothing exceeds its limit, 1 when something does, 2 when there is not enough
data to say (see --not-enough-data). docs/ci.md shows how to use it in GitHub Actions and GitLab.";

/// Fail when a version costs more than it may: for pipelines
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GateArgs {
    /// Compare versions of this service, of a collector
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,

    /// The version to compare with; without --service pprof files, as a pattern: 'base/*.pb.gz'
    #[arg(long, value_name = "VERSION|FILES")]
    pub(crate) from: Option<String>,

    /// The version that is compared; without --service pprof files
    #[arg(long, value_name = "VERSION|FILES")]
    pub(crate) to: Option<String>,

    #[command(flatten)]
    pub(crate) sides: SidesArgs,

    /// What may not cost more, and by how much: cpu:+2%, lock.total:+10%, alloc/REGEX/:+5%; may be
    /// given several times
    #[arg(long, value_name = "LIMIT", required = true)]
    pub(crate) fail_on: Vec<Rule>,

    /// Only profiles with these labels, as in PromQL
    #[arg(long, default_value = "", hide_default_value = true, requires = "service")]
    pub(crate) selector: String,

    #[command(flatten)]
    pub(crate) server: ServerArg,

    /// How the gate ends when there is not enough data for a limit, and none is exceeded
    #[arg(long, value_enum, default_value_t = NotEnough::Exit2)]
    pub(crate) not_enough_data: NotEnough,

    /// What to write [default: what --output ends in, else a table]
    #[arg(long, value_parser = one_of(command::gate::FORMATS))]
    pub(crate) format: Option<Format>,

    /// Where to, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// How a gate ends that cannot say anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NotEnough {
    /// With exit code 2
    #[value(name = "exit-2")]
    Exit2,
    /// As if nothing was exceeded
    Pass,
    /// As if a limit was exceeded
    Fail,
}
