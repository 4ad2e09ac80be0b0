//! `everflame leaks`: which memory was allocated while one watched, and is held still.
//!
//! The report itself is [`everflame_profile::leaks`](mod@everflame_profile::leaks); here is where its profile
//! comes from (a process on this host, or files), and how it looks on a terminal.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use everflame_agent::session::AllocMode;
use everflame_profile::{HeldStack, Kind, LeakReport, leaks};

use super::record::{Request, capture};
use super::{json, limit, more};
use crate::args::{LeaksArgs, LeaksSort};
use crate::failure::Failure;
use crate::files;
use crate::format::Format;
use crate::output::Destination;
use crate::table::{Table, printable, terminal_width};
use crate::units::value;

pub(crate) const FORMATS: &[Format] = &[Format::Table, Format::Json];

/// How long a process is watched unless somebody says otherwise.
const DEFAULT_DURATION: Duration = Duration::from_secs(60);
/// Stacks that a table shows unless `--limit` says otherwise.
const DEFAULT_LIMIT: u32 = 10;
/// Functions that it shows of a stack.
const MAX_FUNCTIONS: usize = 6;

pub(crate) fn run(args: LeaksArgs) -> Result<(), Failure> {
    let output = args.output.as_deref();
    let format = Format::choose(args.format, output, FORMATS)?;
    let destination = Destination::new(output, false)?;
    let limit = limit(args.limit.or((format == Format::Table).then_some(DEFAULT_LIMIT)), format);
    let width = terminal_width().filter(|_| output.is_none());
    let sort = args.sort;
    let (mut report, source) = report(args)?;
    if sort == LeaksSort::Age {
        report.sort_by_age();
    }
    let is_empty = report.stacks.is_empty();
    let hidden = report.stacks.len().saturating_sub(limit);
    report.stacks.truncate(limit);
    if format == Format::Json {
        destination.write(&json(&report))?;
    } else if !is_empty {
        destination.write(text(&report, hidden, width).as_bytes())?;
    }
    if is_empty {
        return Err(Failure::NoData { message: source.nothing() });
    }
    Ok(())
}

/// Where a report is from.
enum Source {
    Files,
    Process(Duration),
}

impl Source {
    /// Says that nothing is held.
    fn nothing(&self) -> String {
        match self {
            Self::Files => {
                "nothing is held; leaks are seen in profiles of `everflame record --kind \
                            alloc --mode live`"
                    .to_owned()
            }
            Self::Process(took) => format!(
                "nothing that was allocated in {took:.1?} and sampled is held; --duration watches \
                 for longer, --alloc-period samples more"
            ),
        }
    }
}

fn report(args: LeaksArgs) -> Result<(LeakReport, Source), Failure> {
    if !args.files.is_empty() {
        return Ok((leaks(&files::read_all(&args.files)?), Source::Files));
    }
    let duration = args.duration.or(args.command.is_empty().then_some(DEFAULT_DURATION));
    // The rate is that of CPU samples, of which there are none.
    let mut request = Request::new(Kind::Alloc, 1, (args.pid, None), duration, args.command);
    request.config.alloc_mode = AllocMode::Live;
    request.config.live_period_bytes = args.alloc_period;
    let (recording, took) = capture(request)?;
    Ok((leaks(&recording.profile), Source::Process(took)))
}

fn text(report: &LeakReport, hidden: usize, width: Option<usize>) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} in {} objects are held of what was allocated",
        value(report.held_bytes, "bytes"),
        value(report.held_objects, "count")
    );
    let processes: BTreeSet<_> = report.stacks.iter().map(|held| &held.pid).collect();
    let several = processes.len() > 1;
    let mut columns = vec!["HELD", "OBJECTS", "OLDEST", "ALLOCATED"];
    columns.extend(several.then_some("<PROCESS"));
    columns.push("<STACK");
    let mut table = Table::new(&columns);
    for held in &report.stacks {
        let age =
            if held.oldest_ns == 0 { "?".to_owned() } else { value(held.oldest_ns, "nanoseconds") };
        let mut row = vec![
            value(held.held_bytes, "bytes"),
            value(held.held_objects, "count"),
            age,
            value(held.allocated_bytes, "bytes"),
        ];
        row.extend(several.then(|| process(held)));
        row.push(path(held));
        table.row(row);
    }
    out.push_str(&table.render(width));
    out.push_str(&more(hidden));
    out
}

fn process(held: &HeldStack) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "?".to_owned());
    printable(&format!("{} ({})", part(&held.comm), part(&held.pid)))
}

/// The stack, leaf first, with the place in the source that it begins at.
fn path(held: &HeldStack) -> String {
    let mut names: Vec<String> = held.stack.iter().take(MAX_FUNCTIONS).cloned().collect();
    if let (Some(site), Some(leaf)) = (&held.site, names.first_mut()) {
        let _ = write!(leaf, " ({site})");
    }
    if held.stack.len() > MAX_FUNCTIONS {
        names.push("...".to_owned());
    }
    printable(&names.join(" < "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(pid: &str, bytes: i64, oldest_ns: i64, stack: &[&str]) -> HeldStack {
        HeldStack {
            pid: Some(pid.to_owned()),
            comm: Some("server".to_owned()),
            held_bytes: bytes,
            held_objects: 3,
            oldest_ns,
            allocated_bytes: 2 * bytes,
            allocated_objects: 6,
            site: Some("cache.c:12".to_owned()),
            stack: stack.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn table_shows_what_is_held_how_old_it_is_and_where_it_was_allocated() {
        let stacks = vec![held("7", 64 << 20, 58_000_000_000, &["insert", "request", "main"])];
        let mut report = LeakReport { held_bytes: 64 << 20, held_objects: 3, stacks };
        let one = text(&report, 2, None);
        assert!(one.starts_with("64 MiB in 3 objects are held"), "{one}");
        assert!(one.contains("insert (cache.c:12) < request < main\n"), "{one}");
        assert!(one.contains("58 s") && one.contains("128 MiB"), "{one}");
        assert!(one.contains("... and 2 more") && !one.contains("PROCESS"), "{one}");
        report.stacks.push(held("8", 1 << 20, 0, &["a", "b", "c", "d", "e", "f", "g"]));
        let several = text(&report, 0, None);
        assert!(several.contains("server (8)"), "{several}");
        assert!(several.contains("a (cache.c:12) < b < c < d < e < f < ...\n"), "{several}");
    }
}
