//! The commands, one module each, and what they do alike: find their profiles and their
//! time range, and end with "no data" when there is nothing to show.

pub(crate) mod comparison;
pub(crate) mod deploys;
pub(crate) mod diff;
pub(crate) mod flame;
pub(crate) mod gate;
pub(crate) mod io;
pub(crate) mod leaks;
pub(crate) mod locks;
pub(crate) mod net;
mod progress;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod services;
mod subject;
pub(crate) mod top;

use everflame_profile::pprof::Profile;
use everflame_profile::{Kind, sample_type_index};
use serde::Serialize;

use crate::args::{Command, RangeArgs, SourceArgs};
use crate::collector::{Collector, selection};
use crate::failure::Failure;
use crate::files;
use crate::format::Format;
use crate::when::{Range, When, now_unix_ns};

/// The length of the range that is looked at unless `--from` says otherwise.
const DEFAULT_RANGE_NS: i64 = 3_600_000_000_000;
/// How many functions tables show unless `--limit` says otherwise.
const DEFAULT_LIMIT: usize = 30;

pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Record(args) => record::run(args),
        Command::Top(args) => top::run(args),
        Command::Flame(args) => flame::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Locks(args) => locks::run(args),
        Command::Io(args) => io::run(args),
        Command::Net(args) => net::run(args),
        Command::Leaks(args) => leaks::run(args),
        Command::Services(args) => services::run(args),
        Command::Deploys(args) => deploys::run(args),
        Command::Deploy(args) => deploys::run_deploy(args),
        Command::Gate(args) => gate::run(args),
    }
}

/// The range from `--from` to `--to`.
fn range(args: &RangeArgs, now_unix_ns: i64) -> Result<Range, Failure> {
    range_of(args, DEFAULT_RANGE_NS, now_unix_ns)
}

/// The same, where another length is looked at unless `--from` says otherwise.
fn range_of(args: &RangeArgs, default_ns: i64, now_unix_ns: i64) -> Result<Range, Failure> {
    let end_unix_ns = args.to.unwrap_or(When::NOW).unix_ns(now_unix_ns);
    let start_unix_ns =
        args.from.map_or(end_unix_ns.saturating_sub(default_ns), |from| from.unix_ns(now_unix_ns));
    non_empty(Range { start_unix_ns, end_unix_ns }, "--from", "--to")
}

fn non_empty(range: Range, from: &str, to: &str) -> Result<Range, Failure> {
    if range.is_empty() {
        let message = format!("{from} must be before {to}; there is no time {range}");
        return Err(Failure::usage(message));
    }
    Ok(range)
}

/// The profile that the arguments name, from files or from the collector, and the index of
/// the sample type.
fn load(source: &SourceArgs) -> Result<(Profile, usize), Failure> {
    let sample_type = source.sample_type.sample_type.as_deref();
    let profile = if source.files.is_empty() {
        let query = &source.query;
        let range = range(&query.range, now_unix_ns())?;
        let selection = selection(query.kind.name(), &query.selector, range, sample_type);
        Collector::connect(&query.server)?.merge(selection)?
    } else {
        files::read_all(&source.files)?
    };
    let index = sample_type_index(&profile, sample_type)?;
    Ok((profile, index))
}

/// Says that there is nothing, and where to look.
fn no_data(source: &SourceArgs) -> Failure {
    let message = if source.files.is_empty() {
        nothing_in(
            source.query.kind,
            &source.query.selector,
            range(&source.query.range, now_unix_ns()).ok(),
        )
    } else {
        let names: Vec<String> =
            source.files.iter().map(|path| path.display().to_string()).collect();
        format!("no samples in {}", names.join(", "))
    };
    Failure::NoData { message }
}

fn nothing_in(kind: Kind, selector: &str, range: Option<Range>) -> String {
    let selector = if selector.is_empty() { "{}" } else { selector };
    let range = range.map_or_else(String::new, |range| format!(" {range}"));
    format!("no {kind} samples of {selector}{range}; `everflame services` shows what there is")
}

/// How many rows to show; 0 is all of them.
fn limit(limit: Option<u32>, format: Format) -> usize {
    let default = if format == Format::Table { DEFAULT_LIMIT } else { 0 };
    match limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(0)) {
        0 => usize::MAX,
        limit => limit,
    }
}

/// A line on how many rows of a table are not shown.
fn more(hidden: usize) -> String {
    if hidden == 0 {
        String::new()
    } else {
        format!("... and {hidden} more; --limit 0 shows all\n")
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "our tables have nothing that JSON cannot hold")]
    let mut text = serde_json::to_vec_pretty(value).expect("tables serialise");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000_000_000;

    fn check(from: Option<&str>, to: Option<&str>, expected_s: Option<(i64, i64)>) {
        let when = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let range = range(&RangeArgs { from: when(from), to: when(to) }, NOW).ok();
        let seconds = |ns: i64| (ns - NOW) / 1_000_000_000;
        let actual = range.map(|range| (seconds(range.start_unix_ns), seconds(range.end_unix_ns)));
        assert_eq!(actual, expected_s, "{from:?} {to:?}");
    }

    #[test]
    fn last_hour_is_the_default() {
        check(None, None, Some((-3600, 0)));
        check(Some("-2h"), None, Some((-7200, 0)));
        check(None, Some("-1d"), Some((-90_000, -86_400)));
        check(Some("-2h"), Some("-1h"), Some((-7200, -3600)));
        check(Some("-1h"), Some("-2h"), None);
        check(Some("now"), None, None);
    }

    #[test]
    fn tables_are_short_unless_asked_and_data_is_whole() {
        assert_eq!(limit(None, Format::Table), 30);
        assert_eq!(limit(None, Format::Json), usize::MAX);
        assert_eq!(limit(Some(0), Format::Table), usize::MAX);
        assert_eq!(limit(Some(5), Format::Json), 5);
    }
}
