//! The arguments, as clap takes them apart. Nothing here does any work.
//!
//! Names of commands and flags are what scripts rely on: add to them, never rename.

mod deploys;
mod diff;
mod gate;
mod leaks;
mod net;
mod report;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use everflame_agent::session::AllocMode;
use everflame_agent::size::parse_sampling_period;
use everflame_profile::Kind;

use crate::collector::DEFAULT_URL;
use crate::command;
use crate::format::{Format, one_of};
use crate::when::{When, parse_duration};

pub(crate) use deploys::{AnnounceArgs, DeployArgs, DeployCommand, DeploysArgs, ServerArg};
pub(crate) use diff::{DiffArgs, SidesArgs};
pub(crate) use gate::{GateArgs, NotEnough};
pub(crate) use leaks::{LeaksArgs, LeaksSort};
pub(crate) use net::NetArgs;
pub(crate) use report::ReportArgs;

const TOP_EXAMPLES: &str = "\
Examples:
  everflame top                                        the last hour, everything
  everflame top --selector '{service=\"api\"}' --from -15m
  everflame top profile.pb.gz                          a file, from any pprof tool
  everflame top host-1.pb.gz host-2.pb.gz              files are summed
  everflame top --format pprof -o api.pb.gz --selector '{service=\"api\"}'";

const FLAME_EXAMPLES: &str = "\
Examples:
  everflame flame profile.pb.gz                        a tree, as text
  everflame flame profile.pb.gz -o profile.svg         a picture, for browsers
  everflame flame profile.pb.gz -o profile.folded      for flamegraph.pl and the like
  everflame flame --selector '{service=\"api\"}' --from -15m -o api.svg";

const SERVICES_EXAMPLES: &str = "\
Examples:
  everflame services
  everflame services --from -7d --selector '{service=~\"api.*\"}'
  everflame services --format json";

const RECORD_EXAMPLES: &str = "\
Examples:
  everflame record -o host.svg                         everything, for 10 seconds
  everflame record --pid 4711 --duration 30s -o api.pb.gz
  everflame record --comm nginx -o nginx.folded
  everflame record -o build.svg -- make -j8            until it ends

Needs root, or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE. Ctrl-C ends the recording and
writes what there is. A COMMAND that still runs after --duration is sent SIGTERM.";

const LOCKS_EXAMPLES: &str = "\
Examples:
  everflame locks                                      this host, for 10 seconds
  everflame locks --pid 4711 --duration 30s
  everflame locks --format json -- ./bench             until it ends
  everflame locks --selector '{service=\"api\"}' --from -15m
      what the collector has; '{}' is everything
  everflame locks lock.pb.gz                           of everflame record --kind lock --side all

WAIT is what threads waited, all together. Of a holder it is the waiting of others that its
releases of the lock ended. A lock without an address is one whose waiters sleep on words of
their own: it has the name of the function that wants it.";

const IO_EXAMPLES: &str = "\
Examples:
  everflame io                                         this host, for 10 seconds
  everflame io --pid 4711 --duration 30s
  everflame io --format json -- ./import               until it ends
  everflame io --selector '{service=\"db\"}' --from -15m
      what the collector has; '{}' is everything
  everflame io block.pb.gz                             of everflame record --kind block

QUEUE is the time from when a request is made to when it goes to its disk, DEVICE from then to
its end; percentiles are right to within a power of two. An operation is a completed request, as
/sys/block/DISK/stat counts them; sync is how long it took to make a file durable (ext4 and f2fs),
whatever requests that needed. (writeback) is what the kernel writes of what some process has
written to a file before.";

const ROOT_HELP: &str = "\
Examples:
  everflame record -o host.svg                         profile this host, here and now
  everflame top                                        what the last hour went into
  everflame diff before.pb.gz after.pb.gz              what changed

Exit codes: 0 success, 1 a failed check, 2 not enough data, 64 usage, 65 bad data,
66 no input, 69 collector unavailable, 74 I/O, 77 permission.";

/// See where time goes: record profiles, and look at those of files and of a collector
#[derive(Debug, Parser)]
#[command(name = "everflame", version, after_help = ROOT_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Record(RecordArgs),
    Top(TopArgs),
    Flame(FlameArgs),
    Diff(DiffArgs),
    Locks(LocksArgs),
    Io(IoArgs),
    Net(NetArgs),
    Leaks(LeaksArgs),
    Services(ServicesArgs),
    Deploys(DeploysArgs),
    Deploy(DeployArgs),
    Gate(GateArgs),
}

/// Profile this host, here and now, without a collector
#[derive(Debug, Args)]
#[command(after_help = RECORD_EXAMPLES)]
#[command(group = ArgGroup::new("target").args(["pid", "comm", "command"]))]
pub(crate) struct RecordArgs {
    /// What to profile
    #[arg(long, value_name = "KIND", default_value_t = Kind::Cpu)]
    pub(crate) kind: Kind,

    /// How long; 10s unless there is a COMMAND, which is recorded until it ends
    #[arg(long, value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,

    /// Only the process with this id
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) pid: Option<u32>,

    /// Only processes with this name
    #[arg(long, value_name = "NAME")]
    pub(crate) comm: Option<String>,

    /// Samples per second and CPU
    #[arg(long, value_name = "N", default_value_t = 97, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) rate_hz: u64,

    /// Of kind alloc: how allocations are seen
    #[arg(long, value_enum, default_value_t = AllocModeArg::Faults)]
    pub(crate) mode: AllocModeArg,

    /// Of kind alloc: one sample in this much memory [default: 512KiB; in mode live, as processes
    /// have it]
    #[arg(long, value_name = "SIZE", value_parser = parse_sampling_period)]
    pub(crate) alloc_period: Option<u64>,

    /// Of kind lock: whose stacks
    #[arg(long, value_enum, default_value_t = LockSide::Joined)]
    pub(crate) side: LockSide,

    /// Where to: .pb.gz is a pprof profile, .folded are collapsed stacks, .svg is a picture
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,

    /// A program to start; it and its children are recorded
    #[arg(last = true)]
    pub(crate) command: Vec<OsString>,
}

/// How allocations are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AllocModeArg {
    /// By what processes' memory grows by; costs next to nothing
    Faults,
    /// By probes on the allocator of one process (--pid), which slow down each call by a microsecond
    Window,
    /// By a library within processes, which also sees what is freed
    Live,
}

impl From<AllocModeArg> for AllocMode {
    fn from(mode: AllocModeArg) -> Self {
        match mode {
            AllocModeArg::Faults => Self::Faults,
            AllocModeArg::Window => Self::Window,
            AllocModeArg::Live => Self::Live,
        }
    }
}

/// Which stacks of waits for locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LockSide {
    /// Those that waited
    Waiter,
    /// Those that released the lock
    Holder,
    /// Both in one: who waited, and below whom the wait ended
    Joined,
    /// All three, told apart by the label `side`; each counts all waiting
    All,
}

/// Show which locks threads wait for, who waits, and who held them
#[derive(Debug, Args)]
#[command(after_help = LOCKS_EXAMPLES)]
pub(crate) struct LocksArgs {
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// Show what processes want of disks, how long that takes, and which code it is
#[derive(Debug, Args)]
#[command(after_help = IO_EXAMPLES)]
pub(crate) struct IoArgs {
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// Show the functions that cost the most
#[derive(Debug, Args)]
#[command(after_help = TOP_EXAMPLES)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// Sort by what functions cost themselves, or by that and what they call
    #[arg(long, value_enum, default_value_t = By::Self_)]
    pub(crate) by: By,

    /// The most functions to show; 0 is all [default: 30 in tables, else all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,

    /// What to write [default: what --output ends in, else a table]
    #[arg(long, value_parser = one_of(command::top::FORMATS))]
    pub(crate) format: Option<Format>,

    /// Where to, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Show which functions call which, and what that costs
#[derive(Debug, Args)]
#[command(after_help = FLAME_EXAMPLES)]
pub(crate) struct FlameArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// In the text tree, leave out what is less than this share of everything
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    pub(crate) min_percent: f64,

    /// What to write [default: what --output ends in, else a table]
    #[arg(long, value_parser = one_of(command::flame::FORMATS))]
    pub(crate) format: Option<Format>,

    /// Where to, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Show which services and versions the collector knows
#[derive(Debug, Args)]
#[command(after_help = SERVICES_EXAMPLES)]
pub(crate) struct ServicesArgs {
    /// The collector
    #[arg(long, value_name = "URL", env = "EVERFLAME_SERVER", hide_env_values = true, default_value = DEFAULT_URL)]
    pub(crate) server: String,

    /// Only profiles with these labels, as in PromQL: '{service="api",version=~"v4.*"}'
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) selector: String,

    /// Only profiles of this kind [default: all]
    #[arg(long)]
    pub(crate) kind: Option<Kind>,

    #[command(flatten)]
    pub(crate) range: RangeArgs,

    /// What to write [default: what --output ends in, else a table]
    #[arg(long, value_parser = one_of(command::services::FORMATS))]
    pub(crate) format: Option<Format>,

    /// Where to, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Which profiles: those of files or of a collector.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// pprof files, gzip'd or not, instead of a collector's profiles; - is stdin
    #[arg(value_name = "FILE", conflicts_with_all = COLLECTOR_FLAGS)]
    pub(crate) files: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) query: QueryArgs,

    #[command(flatten)]
    pub(crate) sample_type: SampleTypeArg,
}

/// What makes no sense with files. (The server may be named by the environment, so it
/// is only ignored.)
const COLLECTOR_FLAGS: [&str; 4] = ["selector", "kind", "from", "to"];

/// Which of a collector's profiles.
#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// The collector
    #[arg(long, value_name = "URL", env = "EVERFLAME_SERVER", hide_env_values = true, default_value = DEFAULT_URL)]
    pub(crate) server: String,

    /// Only profiles with these labels, as in PromQL: '{service="api",version=~"v4.*"}'
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) selector: String,

    /// The kind of profile: cpu, offcpu, lock, alloc, block or tcp
    #[arg(long, default_value_t = Kind::Cpu)]
    pub(crate) kind: Kind,

    #[command(flatten)]
    pub(crate) range: RangeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RangeArgs {
    /// From this time on: RFC 3339, Unix seconds, or relative as in -1h30m [default: an hour
    /// before --to]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) from: Option<When>,

    /// Before this time [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) to: Option<When>,
}

#[derive(Debug, Args)]
pub(crate) struct SampleTypeArg {
    /// Which of the profile's values, such as samples or cpu [default: the profile says]
    #[arg(long, value_name = "NAME")]
    pub(crate) sample_type: Option<String>,
}

/// Which of a function's two values: its own, or with what it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    #[value(name = "self")]
    Self_,
    Total,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    fn check(line: &str, is_fine: bool) {
        let parsed = Cli::try_parse_from(line.split_whitespace());
        assert_eq!(parsed.is_ok(), is_fine, "{line}: {parsed:?}");
    }

    #[test]
    fn times_before_now_are_no_flags() {
        check("everflame top --from -1h --to now", true);
        check("everflame diff --base-from -2h --base-to -1h --from -1h", true);
        check("everflame top --from yesterday", false);
    }

    #[test]
    fn files_and_selectors_exclude_each_other() {
        check("everflame top a.pb.gz b.pb.gz", true);
        check("everflame top a.pb.gz --server http://x:1", true);
        for flag in ["--selector {}", "--kind cpu", "--from -1h", "--to now"] {
            check(&format!("everflame top a.pb.gz {flag}"), false);
            check(&format!("everflame diff a.pb.gz b.pb.gz {flag}"), false);
        }
        check("everflame diff a.pb.gz", false);
        check("everflame diff a.pb.gz b.pb.gz c.pb.gz", false);
        check("everflame diff a.pb.gz b.pb.gz --base-from -1h", false);
    }

    #[test]
    fn locks_are_of_one_source() {
        check("everflame locks", true);
        check("everflame locks --pid 1 --duration 30s", true);
        check("everflame locks --selector {} --from -1h", true);
        check("everflame locks a.pb.gz --format json", true);
        check("everflame locks -- make -j8", true);
        check("everflame locks --from -1h", false);
        check("everflame locks --selector {} --pid 1", false);
        check("everflame locks --selector {} --duration 1s", false);
        check("everflame locks a.pb.gz --pid 1", false);
    }

    #[test]
    fn record_has_one_target() {
        check("everflame record -o f.svg", true);
        check("everflame record -o f.svg --pid 1", true);
        check("everflame record -o f.svg -- make -j8", true);
        check("everflame record -o f.svg --pid 1 --comm x", false);
        check("everflame record -o f.svg --pid 1 -- make", false);
        check("everflame record -o f.svg --pid 0", false);
        check("everflame record -o f.svg make", false);
        check("everflame record -o f.svg --rate-hz 0", false);
        check("everflame record -o f.svg --duration 0s", false);
        check("everflame record", false);
    }
}
