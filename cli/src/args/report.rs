//! The arguments of reports on what a profile of one kind says of something: `locks`, `io`, `net`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};

use crate::collector::DEFAULT_URL;
use crate::command;
use crate::format::{Format, one_of};
use crate::when::{When, parse_duration};

/// Where the profile of a report comes from, and what becomes of the report.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").args(["pid", "comm", "command", "selector", "files"]))]
pub(crate) struct ReportArgs {
    /// pprof files of the kind that the report is about, instead of this host
    #[arg(value_name = "FILE", conflicts_with_all = ["duration", "from", "to"])]
    pub(crate) files: Vec<PathBuf>,

    /// How long to watch this host; 10s unless there is a COMMAND, which is watched until it ends
    #[arg(long, value_parser = parse_duration, conflicts_with = "selector")]
    pub(crate) duration: Option<Duration>,

    /// Only the process with this id
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pid: Option<u32>,

    /// Only processes with this name
    #[arg(long, value_name = "NAME")]
    pub(crate) comm: Option<String>,

    /// Ask the collector, instead of watching this host, for profiles with these labels, as in
    /// PromQL: '{service="api"}'; '{}' is all
    #[arg(long)]
    pub(crate) selector: Option<String>,

    /// The collector
    #[arg(long, value_name = "URL", env = "EVERFLAME_SERVER", hide_env_values = true, default_value = DEFAULT_URL)]
    pub(crate) server: String,

    /// From this time on: RFC 3339, Unix seconds, or relative as in -1h30m [default: an hour
    /// before --to]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "selector")]
    pub(crate) from: Option<When>,

    /// Before this time [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "selector")]
    pub(crate) to: Option<When>,

    /// The most to show; 0 is all [default: 10 in tables, else all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,

    /// What to write [default: what --output ends in, else a table]
    #[arg(long, value_parser = one_of(command::report::FORMATS))]
    pub(crate) format: Option<Format>,

    /// Where to, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// A program to start; it and its children are watched
    #[arg(last = true)]
    pub(crate) command: Vec<OsString>,
}
