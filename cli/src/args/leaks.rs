//! The arguments of `everflame leaks`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use everflame_agent::size::parse_sampling_period;

use crate::command;
use crate::format::{Format, one_of};
use crate::when::parse_duration;

const LEAKS_EXAMPLES: &str = "\
Examples:
  everflame leaks --pid 4711                           what it holds of a minute's allocations
  everflame leaks --pid 4711 --duration 10m --sort age
  everflame leaks --pid 4711 --format json
  everflame leaks -- env LD_PRELOAD=/path/to/libeverflame_alloc.so ./batch
      what it holds when it ends, but for what it allocates in its first milliseconds
  everflame leaks heap.pb.gz                           of everflame record --kind alloc --mode live

The process must have been started with the library that samples its allocations:
LD_PRELOAD=/path/to/libeverflame_alloc.so my-service. What is shown is an estimate from a sample
of all objects; it includes caches and requests that are being served. A leak grows with
--duration, and its OLDEST is about as old as the recording. What had been allocated before is
not shown.";

/// Show which memory was allocated while one watched, and is held still
#[derive(Debug, Args)]
#[command(after_help = LEAKS_EXAMPLES)]
#[command(group = ArgGroup::new("target").args(["pid", "command", "files"]).required(true))]
pub(crate) struct LeaksArgs {
    /// pprof files of kind alloc, mode live, instead of a process
    #[arg(value_name = "FILE", conflicts_with_all = ["duration", "alloc_period"])]
    pub(crate) files: Vec<PathBuf>,

    /// How long to watch; 60s unless there is a COMMAND, which is watched until it ends
    #[arg(long, value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,

    /// The process with this id
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pid: Option<u32>,

    /// One sample in this much memory [default: as the process has it, 512KiB unless
    /// EVERFLAME_ALLOC_PERIOD was set when it started]
    #[arg(long, value_name = "SIZE", value_parser = parse_sampling_period)]
    pub(crate) alloc_period: Option<u64>,

    /// What comes first
    #[arg(long, value_enum, default_value_t = LeaksSort::Bytes)]
    pub(crate) sort: LeaksSort,

    /// The most stacks to show; 0 is all [default: 10 in tables, else all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,

    /// What to write [default: what --output ends in, else a table]
    #[arg(long, value_parser = one_of(command::leaks::FORMATS))]
    pub(crate) format: Option<Format>,

    /// Where to, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// A program to start; it and its children are watched
    #[arg(last = true)]
    pub(crate) command: Vec<OsString>,
}

/// How stacks that hold memory are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LeaksSort {
    /// The stack that holds most bytes; of equal ones the one with the oldest object
    Bytes,
    /// The stack with the oldest object
    Age,
}
