//! The arguments of `everflame deploys`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::collector::DEFAULT_URL;
use crate::command;
use crate::format::{Format, one_of};
use crate::when::When;

const DEPLOYS_EXAMPLES: &str = "\
Examples:
  everflame deploys                                    of the last week, of all services
  everflame deploys --service checkout --from -30d
  everflame deploy announce --service checkout --version v42 --commit 3f9c2d1

A deploy begins when a version of a service is seen that was not seen before, or that comes back after
another one: a rollback is a deploy. BEFORE is the version that most hosts ran until then. To compare
the two: everflame diff --base-selector '{service=\"checkout\",version=\"v41\"}' \\
    --selector '{service=\"checkout\",version=\"v42\"}'";

const ANNOUNCE_EXAMPLES: &str = "\
Examples:
  everflame deploy announce --service checkout --version v42
  everflame deploy announce --service checkout --version \"$(git describe)\" \\
      --commit \"$(git rev-parse HEAD)\" --url \"$CI_PIPELINE_URL\"

An announcement adds what profiles do not know. It starts nothing: the deploy begins when the version
is seen.";

/// Show which versions of services ran, since when, and on how many hosts
#[derive(Debug, Args)]
#[command(after_help = DEPLOYS_EXAMPLES)]
pub(crate) struct DeploysArgs {
    /// Only of this service
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,

    #[command(flatten)]
    pub(crate) server: ServerArg,

    /// Only those that began from this time on: RFC 3339, Unix seconds, or relative as in -30d
    /// [default: a week before --to]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) from: Option<When>,

    /// Only those that began before this time [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) to: Option<When>,

    /// The most deploys to show, newest first; 0 is as many as the collector lists
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub(crate) limit: u32,

    /// What to write [default: what --output ends in, else a table]
    #[arg(long, value_parser = one_of(command::deploys::FORMATS))]
    pub(crate) format: Option<Format>,

    /// Where to, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Tell the collector about deploys
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    #[command(subcommand)]
    pub(crate) command: DeployCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeployCommand {
    Announce(AnnounceArgs),
}

/// Say which commit a version is, and where to read more
#[derive(Debug, Args)]
#[command(after_help = ANNOUNCE_EXAMPLES)]
pub(crate) struct AnnounceArgs {
    /// The service, as its profiles name it
    #[arg(long, value_name = "NAME")]
    pub(crate) service: String,

    /// The version, as its profiles name it
    #[arg(long, value_name = "VERSION")]
    pub(crate) version: String,

    /// The commit that it is built from
    #[arg(long, value_name = "COMMIT", default_value = "", hide_default_value = true)]
    pub(crate) commit: String,

    /// Where to read more: a pipeline, a release, a change
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    pub(crate) url: String,

    #[command(flatten)]
    pub(crate) server: ServerArg,
}

/// Which collector.
#[derive(Debug, Args)]
pub(crate) struct ServerArg {
    /// The collector
    #[arg(long, value_name = "URL", env = "EVERFLAME_SERVER", hide_env_values = true, default_value = DEFAULT_URL)]
    pub(crate) server: String,
}
