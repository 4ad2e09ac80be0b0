//! `everflame diff`: what changed between two profiles.

use std::path::PathBuf;

use everflame_compare::{Answer, ComparedSide};
use everflame_profile::pprof::Profile;
use everflame_profile::{Delta, DiffTable, FunctionDiff, diff, encode_gz, subtract};

use super::comparison::{ask, caveats, text};
use super::{json, limit, more, non_empty, nothing_in, range};
use crate::args::{By, DiffArgs, RangeArgs};
use crate::collector::{Collector, selection};
use crate::failure::Failure;
use crate::files;
use crate::format::Format;
use crate::output::Destination;
use crate::svg;
use crate::table::{Table, printable, terminal_width};
use crate::units::{percent, points, rate, value};
use crate::when::{Range, When, now_unix_ns};

pub(crate) const FORMATS: &[Format] = &[Format::Table, Format::Json, Format::Pprof, Format::Svg];

pub(crate) fn run(args: DiffArgs) -> Result<(), Failure> {
    let output = args.output.as_deref();
    let format = Format::choose(args.format, output, FORMATS)?;
    let destination = Destination::new(output, format == Format::Pprof)?;
    if let Some(service) = &args.service {
        return run_versions(&args, service, format, destination);
    }
    let sides = sides(&args, now_unix_ns())?;
    if matches!(format, Format::Pprof | Format::Svg) {
        let (base, compare) = sides.profiles(&args)?;
        return Ok(destination.write(&drawn(&base, &compare, &args, format)?)?);
    }
    let mut table = load(&args, &sides)?;
    if args.by == By::Total {
        sort_by_total(&mut table);
    }
    if format == Format::Table {
        // Those that do not have the value on either side cannot differ in it.
        table.functions.retain(|function| values(function, args.by) != (0, 0));
    }
    let hidden = table.functions.len().saturating_sub(limit(args.limit, format));
    table.functions.truncate(table.functions.len() - hidden);

    let empty = sides.empty(&args, &table);
    let bytes = match format {
        Format::Json => json(&table),
        _ if empty.is_some() => Vec::new(),
        _ => {
            let width = terminal_width().filter(|_| output.is_none());
            text(&table, args.by, hidden, width).into_bytes()
        }
    };
    if !bytes.is_empty() {
        destination.write(&bytes)?;
    }
    match empty {
        Some(message) => Err(Failure::NoData { message }),
        None => Ok(()),
    }
}

/// Compares versions of a service, by their hosts.
fn run_versions(
    args: &DiffArgs,
    service: &str,
    format: Format,
    destination: Destination,
) -> Result<(), Failure> {
    let versions = (args.from.as_deref(), args.to.as_deref());
    let request = ask::request(service, &args.sides, versions, &args.selector, now_unix_ns())?;
    let mut collector = Collector::connect(&args.server.server)?;
    let comparison = ask::compare(&mut collector, &request, args.kind)?;
    let bytes = match format {
        Format::Json => json(&comparison),
        Format::Pprof | Format::Svg => {
            let mut side = |side: &ComparedSide| {
                collector.merge(ask::selection_of(&comparison, side, &args.selector))
            };
            let (base, compare) = (side(&comparison.base)?, side(&comparison.compare)?);
            drawn(&base, &compare, args, format)?
        }
        _ => {
            let width = terminal_width().filter(|_| args.output.is_none());
            text::text(&comparison, limit(args.limit, format), width).into_bytes()
        }
    };
    destination.write(&bytes)?;
    let basis = &comparison.report.basis;
    if comparison.report.answer == Answer::NotEnoughData {
        // What there is was shown; scripts need to know.
        return Err(Failure::NoData { message: caveats(basis, Answer::NotEnoughData).join("; ") });
    }
    Ok(())
}

/// Both profiles as one: for pprof tools, or as a picture.
fn drawn(
    base: &Profile,
    compare: &Profile,
    args: &DiffArgs,
    format: Format,
) -> Result<Vec<u8>, Failure> {
    let sample_type = args.sample_type.sample_type.as_deref();
    if format == Format::Svg {
        return svg::draw_difference(base, compare, sample_type);
    }
    Ok(encode_gz(&subtract(base, compare)?))
}

/// Where the two profiles come from.
enum Sides {
    Files { before: PathBuf, after: PathBuf },
    Collector { base_selector: String, base: Range, compare: Range },
}

fn sides(args: &DiffArgs, now_unix_ns: i64) -> Result<Sides, Failure> {
    if let (Some(before), Some(after)) = (&args.before, &args.after) {
        return Ok(Sides::Files { before: before.clone(), after: after.clone() });
    }
    if args.base_selector.is_none() && args.base_from.is_none() && args.base_to.is_none() {
        return Err(Failure::usage(
            "say what to compare with: --service NAME for its last deploy, two files, --base-selector, or \
             --base-from (as in `--base-from -1d`, for the same time yesterday)",
        ));
    }
    let time = |text: &Option<String>, flag: &str| match text {
        None => Ok(None),
        Some(text) => text.parse::<When>().map(Some).map_err(|err| {
            Failure::usage(format!("{flag} `{text}`: {err}; with --service it is a version"))
        }),
    };
    let times = RangeArgs { from: time(&args.from, "--from")?, to: time(&args.to, "--to")? };
    let compare = range(&times, now_unix_ns)?;
    let length_ns = compare.length_ns();
    let from = args.base_from.map(|from| from.unix_ns(now_unix_ns));
    let to = args.base_to.map(|to| to.unix_ns(now_unix_ns));
    // A side that is not given is as far from the other as it is on the compared side.
    let (start_unix_ns, end_unix_ns) = match (from, to) {
        (None, None) => (compare.start_unix_ns, compare.end_unix_ns),
        (Some(from), None) => (from, from.saturating_add(length_ns)),
        (None, Some(to)) => (to.saturating_sub(length_ns), to),
        (Some(from), Some(to)) => (from, to),
    };
    let base = non_empty(Range { start_unix_ns, end_unix_ns }, "--base-from", "--base-to")?;
    let base_selector = args.base_selector.clone().unwrap_or_else(|| args.selector.clone());
    if base == compare && base_selector == args.selector {
        return Err(Failure::usage("both sides are the same profiles: nothing can differ"));
    }
    Ok(Sides::Collector { base_selector, base, compare })
}

impl Sides {
    /// Which side has no samples, if one has none.
    fn empty(&self, args: &DiffArgs, table: &DiffTable) -> Option<String> {
        let (is_base, is_compare) = (table.base_total == 0, table.compare_total == 0);
        let message = match self {
            _ if !is_base && !is_compare => return None,
            Self::Files { before, after } => {
                let path = if is_base { before } else { after };
                format!("no samples in {}", path.display())
            }
            Self::Collector { base_selector, base, .. } if is_base => {
                format!(
                    "nothing to compare with: {}",
                    nothing_in(args.kind, base_selector, Some(*base))
                )
            }
            Self::Collector { compare, .. } => {
                nothing_in(args.kind, &args.selector, Some(*compare))
            }
        };
        Some(message)
    }
}

impl Sides {
    /// The profiles themselves.
    fn profiles(&self, args: &DiffArgs) -> Result<(Profile, Profile), Failure> {
        match self {
            Self::Files { before, after } => Ok((files::read(before)?, files::read(after)?)),
            Self::Collector { base_selector, base, compare } => {
                let kind = args.kind.name();
                let mut collector = Collector::connect(&args.server.server)?;
                let base = collector.merge(selection(kind, base_selector, *base, None))?;
                Ok((base, collector.merge(selection(kind, &args.selector, *compare, None))?))
            }
        }
    }
}

fn load(args: &DiffArgs, sides: &Sides) -> Result<DiffTable, Failure> {
    let sample_type = args.sample_type.sample_type.as_deref();
    match sides {
        Sides::Collector { base_selector, base, compare } => {
            let kind = args.kind.name();
            let base = selection(kind, base_selector, *base, sample_type);
            let compare = selection(kind, &args.selector, *compare, sample_type);
            Ok(Collector::connect(&args.server.server)?.diff(base, compare)?)
        }
        Sides::Files { before, after } => {
            Ok(diff(&files::read(before)?, &files::read(after)?, sample_type)?)
        }
    }
}

fn sort_by_total(table: &mut DiffTable) {
    let mut functions = std::mem::take(&mut table.functions);
    let change = |function: &FunctionDiff| table.total_delta(function).share_delta_pp.abs();
    functions.sort_by(|a, b| change(b).total_cmp(&change(a)));
    table.functions = functions;
}

fn text(table: &DiffTable, by: By, hidden: usize, width: Option<usize>) -> String {
    let mut rows =
        Table::new(&["BASE SHARE", "SHARE", "CHANGE", "BASE COST", "COST", "CHANGE", "<FUNCTION"]);
    for function in &table.functions {
        let delta = match by {
            By::Self_ => table.self_delta(function),
            By::Total => table.total_delta(function),
        };
        let (base, compare) = values(function, by);
        let [base_cost, cost] = costs(&delta, base, compare, &table.unit);
        rows.row(vec![
            percent(delta.base_share),
            percent(delta.compare_share),
            points(delta.share_delta_pp),
            base_cost,
            cost,
            relative(&delta, compare),
            function.name.clone(),
        ]);
    }
    let overall = table.overall_delta();
    let [base_cost, cost] = costs(&overall, table.base_total, table.compare_total, &table.unit);
    format!(
        "{} ({}): {base_cost} before, {cost} after ({})\n{}{}",
        printable(&table.sample_type),
        match by {
            By::Self_ => "self",
            By::Total => "total",
        },
        relative(&overall, table.compare_total),
        rows.render(width),
        more(hidden)
    )
}

/// What a function costs on both sides.
fn values(function: &FunctionDiff, by: By) -> (i64, i64) {
    match by {
        By::Self_ => (function.base_self, function.compare_self),
        By::Total => (function.base_total, function.compare_total),
    }
}

/// Both values per second of profile, or as they are when a side does not say how long
/// it is.
fn costs(delta: &Delta, base: i64, compare: i64, unit: &str) -> [String; 2] {
    match (delta.base_per_second, delta.compare_per_second) {
        (Some(base), Some(compare)) => [rate(base, unit), rate(compare, unit)],
        _ => [value(base, unit), value(compare, unit)],
    }
}

fn relative(delta: &Delta, compare: i64) -> String {
    match delta.relative_change {
        Some(change) if change.abs() < 0.0005 => "0.0%".to_owned(),
        Some(change) if change < 10.0 => format!("{:+.1}%", change * 100.0),
        Some(change) => format!("x{:.0}", change + 1.0),
        None if compare == 0 => "0.0%".to_owned(),
        None => "new".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    const NOW: i64 = 1_700_000_000_000_000_000;

    fn check(line: &str, expected: Result<(i64, i64), &str>) {
        let line = format!("everflame diff {line}");
        let Command::Diff(args) = Cli::parse_from(line.split_whitespace()).command else {
            panic!("{line} is not diff");
        };
        let hours = |ns: i64| (ns - NOW) / 3_600_000_000_000;
        let actual = sides(&args, NOW).map(|sides| match sides {
            Sides::Collector { base, .. } => (hours(base.start_unix_ns), hours(base.end_unix_ns)),
            Sides::Files { .. } => (0, 0),
        });
        match (actual, expected) {
            (Ok(actual), Ok(expected)) => assert_eq!(actual, expected, "{line}"),
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{line}: {error}");
            }
            (actual, _) => panic!("{line}: {}", actual.is_ok()),
        }
    }

    #[test]
    fn base_range_is_as_long_as_the_compared_one() {
        check("--base-from -24h", Ok((-24, -23)));
        check("--base-from -24h --from -3h", Ok((-24, -21)));
        check("--base-to -1h --from -1h", Ok((-2, -1)));
        check("--base-from -2h --base-to -1h --from -1h", Ok((-2, -1)));
        check("--base-selector {version=\"v41\"}", Ok((-1, 0)));
        check("a b", Ok((0, 0)));
    }

    #[test]
    fn comparing_with_nothing_is_a_usage_error() {
        check("", Err("say what to compare with"));
        check("--from -1h --selector {}", Err("say what to compare with"));
        check("--base-from -1h", Err("both sides are the same"));
        check("--base-from -1h --base-to -2h", Err("--base-from must be before --base-to"));
    }
}
