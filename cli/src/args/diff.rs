//! The arguments of `everflame diff`, and which sides there are to compare.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use everflame_profile::Kind;

use super::{By, COLLECTOR_FLAGS, SampleTypeArg, ServerArg};
use crate::command;
use crate::format::{Format, one_of};
use crate::when::{When, parse_duration, parse_duration_or_none};

const EXAMPLES: &str = "\
Examples:
  everflame diff --service checkout
      whether what was deployed last differs from the version before
  everflame diff --service checkout --from v41 --to v42 --kind lock
  everflame diff --service checkout --from-range -3h..-2h --to-range -1h..
  everflame diff before.pb.gz after.pb.gz
  everflame diff before.pb.gz after.pb.gz -o diff.svg  red costs more, blue less
  everflame diff --selector '{service=\"api\"}' --base-from -1d
      the last hour against the same hour yesterday

With --service, hosts are compared with hosts: what changed is told from what would have differed
anyway, by how much the hosts of one version differ among themselves. A change has a confidence
interval of 95 %, and a p adjusted for how many functions were tested; docs/diff.md has the method.
What only moved between functions (renamed, inlined, split) is called shifted.

Otherwise SHARE is the part of everything that its side did, and its change is in percentage
points (pp). COST is per second of profile, so that sides of different length compare. Whether a
difference is more than noise two profiles cannot tell.";

/// Show what changed between two versions of a service, or two profiles
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DiffArgs {
    /// A pprof file, to compare with AFTER, instead of a collector's profiles
    #[arg(requires = "after", conflicts_with_all = COLLECTOR_FLAGS)]
    pub(crate) before: Option<PathBuf>,

    /// The other pprof file
    pub(crate) after: Option<PathBuf>,

    /// Compare versions of this service, by their hosts
    #[arg(long, value_name = "NAME", conflicts_with_all = ["before", "base_selector", "base_from", "base_to", "sample_type", "by"])]
    pub(crate) service: Option<String>,

    /// With --service the version to compare with. Otherwise the time from which on profiles are
    /// compared: RFC 3339, Unix seconds, or relative as in -1h30m [default: an hour before --to]
    #[arg(long, value_name = "VERSION|TIME", allow_hyphen_values = true)]
    pub(crate) from: Option<String>,

    /// With --service the version that is compared. Otherwise before which time [default: now]
    #[arg(long, value_name = "VERSION|TIME", allow_hyphen_values = true)]
    pub(crate) to: Option<String>,

    #[command(flatten)]
    pub(crate) sides: SidesArgs,

    /// The kind of profile: cpu, offcpu, lock, alloc, block or tcp
    #[arg(long, default_value_t = Kind::Cpu)]
    pub(crate) kind: Kind,

    /// Only profiles with these labels, as in PromQL: '{service="api",version=~"v4.*"}'
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) selector: String,

    #[command(flatten)]
    pub(crate) server: ServerArg,

    /// What to compare with: profiles with these labels [default: as --selector]
    #[arg(long, value_name = "SELECTOR", conflicts_with = "before")]
    pub(crate) base_selector: Option<String>,

    /// What to compare with: profiles from this time on [default: as long before --base-to as
    /// --from is before --to]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "before")]
    pub(crate) base_from: Option<When>,

    /// What to compare with: profiles before this time [default: as long after --base-from as
    /// --to is after --from]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "before")]
    pub(crate) base_to: Option<When>,

    #[command(flatten)]
    pub(crate) sample_type: SampleTypeArg,

    /// Compare what functions cost themselves, or that and what they call
    #[arg(long, value_enum, default_value_t = By::Self_)]
    pub(crate) by: By,

    /// The most functions to show; 0 is all [default: 30 in tables, else all]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u32>,

    /// What to write [default: what --output ends in, else a table]
    #[arg(long, value_parser = one_of(command::diff::FORMATS))]
    pub(crate) format: Option<Format>,

    /// Where to, instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Which time of which versions is compared, if not that of two versions.
#[derive(Debug, Args)]
pub(crate) struct SidesArgs {
    /// Compare the version that was deployed last with the one before it, which is what is done when
    /// nothing else is said
    #[arg(long, requires = "service", conflicts_with_all = ["from", "to", "from_range", "to_range"])]
    pub(crate) last_deploy: bool,

    /// Compare with this time, whatever version ran: A..B
    #[arg(long, value_name = "A..B", requires_all = ["service", "to_range"], conflicts_with_all = ["from", "to"], allow_hyphen_values = true)]
    pub(crate) from_range: Option<String>,

    /// The time that is compared: A..B
    #[arg(long, value_name = "A..B", requires_all = ["service", "from_range"], allow_hyphen_values = true)]
    pub(crate) to_range: Option<String>,

    /// How much of each version's time is compared, its end; of the base the same hours of an
    /// earlier day, if it ran then [default: 1h]
    #[arg(long, value_name = "DURATION", requires = "service", value_parser = parse_duration)]
    pub(crate) length: Option<Duration>,

    /// How long after their start instances are left out [default: 2m]
    #[arg(long, value_name = "DURATION", requires = "service", value_parser = parse_duration_or_none)]
    pub(crate) warm_up: Option<Duration>,
}
