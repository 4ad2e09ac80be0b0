//! What reports on a profile of one kind have in common: where the profile comes from (this host, a
//! collector, or files), and where the report goes.

use everflame_profile::Kind;
use everflame_profile::block::EVENT;
use everflame_profile::pprof::Profile;
use serde::Serialize;

use super::record::{Request, capture};
use super::{json, limit, range};
use crate::args::{RangeArgs, ReportArgs};
use crate::collector::{Collector, selection};
use crate::failure::Failure;
use crate::files;
use crate::format::Format;
use crate::output::Destination;
use crate::table::terminal_width;
use crate::when::now_unix_ns;

pub(crate) const FORMATS: &[Format] = &[Format::Table, Format::Json];

/// What a table shows unless `--limit` says otherwise.
const DEFAULT_LIMIT: u32 = 10;
/// Functions that it shows of a stack.
const MAX_FUNCTIONS: usize = 6;

/// The profile that the arguments name.
pub(super) fn profile(args: ReportArgs, kind: Kind) -> Result<Profile, Failure> {
    if !args.files.is_empty() {
        return Ok(files::read_all(&args.files)?);
    }
    if let Some(selector) = &args.selector {
        let range = range(&RangeArgs { from: args.from, to: args.to }, now_unix_ns())?;
        let mut collector = Collector::connect(&args.server)?;
        let has_events = matches!(kind, Kind::Block | Kind::Tcp);
        let selector = if has_events { with_all_events(selector) } else { selector.clone() };
        return Ok(collector.merge(selection(kind.name(), &selector, range, None))?);
    }
    // The rate is that of CPU samples, of which there are none.
    let target = (args.pid, args.comm);
    let request = Request::new(kind, 1, target, args.duration, args.command);
    let (recording, _) = capture(request)?;
    Ok(recording.profile)
}

/// The collector leaves some events out of sums, `sync` of kind `block` and `rtt` of kind `tcp`, unless a
/// selector says something of events.
fn with_all_events(selector: &str) -> String {
    let inner = selector.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    match inner.map(|inner| inner.trim().trim_end_matches(',')) {
        // The collector says what is wrong with it.
        None => selector.to_owned(),
        Some(inner) if inner.split(',').any(is_about_events) => selector.to_owned(),
        Some("") => format!("{{{EVENT}=~\".*\"}}"),
        Some(inner) => format!("{{{inner},{EVENT}=~\".*\"}}"),
    }
}

/// Whether a condition is one on the label.
fn is_about_events(condition: &str) -> bool {
    let rest = condition.trim().strip_prefix(EVENT).map(str::trim_start);
    rest.is_some_and(|rest| rest.starts_with(['=', '!']))
}

/// How a report is shown, and where.
pub(super) struct View {
    format: Format,
    destination: Destination,
    limit: usize,
    width: Option<usize>,
}

impl View {
    pub(super) fn new(args: &ReportArgs) -> Result<Self, Failure> {
        let output = args.output.as_deref();
        let format = Format::choose(args.format, output, FORMATS)?;
        let default = (format == Format::Table).then_some(DEFAULT_LIMIT);
        Ok(Self {
            format,
            destination: Destination::new(output, false)?,
            limit: limit(args.limit.or(default), format),
            width: terminal_width().filter(|_| output.is_none()),
        })
    }

    /// Keeps what is to be shown of a report, and says how much is not.
    pub(super) fn cut<T>(&self, rows: &mut Vec<T>) -> usize {
        let hidden = rows.len().saturating_sub(self.limit);
        rows.truncate(self.limit);
        hidden
    }

    /// Writes the report, for people by `text`. If there is nothing in it, `nothing` says so.
    pub(super) fn show(
        self,
        report: &impl Serialize,
        is_empty: bool,
        text: impl FnOnce(Option<usize>) -> String,
        nothing: &str,
    ) -> Result<(), Failure> {
        if self.format == Format::Json {
            self.destination.write(&json(report))?;
        } else if !is_empty {
            self.destination.write(text(self.width).as_bytes())?;
        }
        if is_empty {
            return Err(Failure::NoData { message: nothing.to_owned() });
        }
        Ok(())
    }
}

/// The program's part of a stack, leaf first.
pub(super) fn path(stack: &[String]) -> String {
    let is_entry = |name: &String| name.starts_with("entry_SYSCALL") || name == "el0_svc";
    let from = stack.iter().rposition(is_entry).map_or(0, |at| at + 1);
    let own = &stack[from..];
    let mut names: Vec<&str> = own.iter().take(MAX_FUNCTIONS).map(String::as_str).collect();
    if own.len() > MAX_FUNCTIONS {
        names.push("...");
    }
    names.join(" < ")
}

/// The program's part of a stack, leaf first; of a thread of the kernel, the kernel's.
pub(super) fn code(stack: &[String]) -> String {
    let own = path(stack);
    if own.is_empty() { stack.join(" < ") } else { own }
}

/// Which process a row is of, if it says so.
pub(super) fn process(comm: Option<&str>, pid: Option<&str>) -> Option<String> {
    match (comm, pid) {
        (Some(comm), Some(pid)) => Some(format!("{comm} (pid {pid})")),
        (who, None) | (None, who) => who.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_ask_for_all_events_unless_they_say_which() {
        assert_eq!(with_all_events("{}"), "{event=~\".*\"}");
        assert_eq!(with_all_events(" {service=\"db\", }"), "{service=\"db\",event=~\".*\"}");
        let other = with_all_events("{service=\"eventbus\"}");
        assert_eq!(other, "{service=\"eventbus\",event=~\".*\"}");
        let own = "{service=\"db\", event != \"sync\"}";
        assert_eq!(with_all_events(own), own);
        assert_eq!(with_all_events("service"), "service");
    }
}
