//! `everflame top`: the functions that cost the most.

use everflame_profile::{TopTable, encode_gz, top};

use super::{json, limit, load, more, no_data, range};
use crate::args::{By, TopArgs};
use crate::collector::{Collector, selection};
use crate::failure::Failure;
use crate::format::Format;
use crate::output::Destination;
use crate::table::{Table, terminal_width};
use crate::units::{percent, share, value};
use crate::when::now_unix_ns;

pub(crate) const FORMATS: &[Format] = &[Format::Table, Format::Json, Format::Pprof];

pub(crate) fn run(args: TopArgs) -> Result<(), Failure> {
    let output = args.output.as_deref();
    let format = Format::choose(args.format, output, FORMATS)?;
    let destination = Destination::new(output, format == Format::Pprof)?;
    if format == Format::Pprof {
        let (profile, _) = load(&args.source)?;
        if profile.sample.is_empty() {
            return Err(no_data(&args.source));
        }
        return Ok(destination.write(&encode_gz(&profile))?);
    }

    let mut table = totals(&args)?;
    if args.by == By::Total {
        table.functions.sort_by_key(|function| std::cmp::Reverse(function.total_value));
    }
    let hidden = table.functions.len().saturating_sub(limit(args.limit, format));
    table.functions.truncate(table.functions.len() - hidden);
    if table.functions.is_empty() {
        if format == Format::Json {
            destination.write(&json(&table))?;
        }
        return Err(no_data(&args.source));
    }
    let bytes = match format {
        Format::Json => json(&table),
        _ => text(&table, hidden, terminal_width().filter(|_| output.is_none())).into_bytes(),
    };
    Ok(destination.write(&bytes)?)
}

/// All functions, sorted by self value.
fn totals(args: &TopArgs) -> Result<TopTable, Failure> {
    if args.source.files.is_empty() {
        let query = &args.source.query;
        let range = range(&query.range, now_unix_ns())?;
        let sample_type = args.source.sample_type.sample_type.as_deref();
        let selection = selection(query.kind.name(), &query.selector, range, sample_type);
        return Ok(Collector::connect(&query.server)?.top(selection, 0)?);
    }
    let (profile, index) = load(&args.source)?;
    Ok(top(&profile, index))
}

fn text(table: &TopTable, hidden: usize, width: Option<usize>) -> String {
    let mut rows = Table::new(&["SELF", "SELF%", "TOTAL", "TOTAL%", "<FUNCTION"]);
    for function in &table.functions {
        rows.row(vec![
            value(function.self_value, &table.unit),
            percent(share(function.self_value, table.total_value)),
            value(function.total_value, &table.unit),
            percent(share(function.total_value, table.total_value)),
            function.name.clone(),
        ]);
    }
    format!(
        "{}: {} in total\n{}{}",
        crate::table::printable(&table.sample_type),
        value(table.total_value, &table.unit),
        rows.render(width),
        more(hidden)
    )
}
