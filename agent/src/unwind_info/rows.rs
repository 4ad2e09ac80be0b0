//! The rows to show, in words.

use std::fmt;

use everflame_agent_common::unwind::Rule;
use everflame_unwind::{InWords, Table};
use serde::Serialize;

use super::binary::Binary;

/// Rows that are shown when nothing else is asked for.
const FIRST: usize = 20;
/// Rows that are shown before and after the one in force at an address.
const NEIGHBOURS: usize = 5;

/// Which rows to show.
#[derive(Debug)]
pub(super) enum Selection {
    First,
    All,
    /// The one in force at this file offset, and some around it.
    Around(u64),
    /// Those in force between these file offsets.
    Ranges(Vec<(u64, u64)>),
}

/// A rule and the code that it is for, by file offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) rule: Rule,
}

/// All rows, each with its end.
pub(super) fn rows(table: &Table) -> Vec<Row> {
    let end = table.shards.last().map_or(0, |shard| u64::from(shard.end_offset));
    let starts: Vec<(u32, Rule)> = table.rows().collect();
    let ends = starts.iter().skip(1).map(|(start, _)| u64::from(*start)).chain([end]);
    let rows = starts.iter().zip(ends);
    rows.map(|(&(start, rule), end)| Row { start: start.into(), end, rule }).collect()
}

/// A row as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    /// Address in the file, if it is one of code.
    address: Option<u64>,
    file_offset: u64,
    bytes: u64,
    /// Which function lies there.
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<String>,
    rule: String,
    /// It is the one that was asked for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    in_force: bool,
}

/// The rows that were asked for.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Listing {
    lines: Vec<Line>,
    /// Rows of the file that are not among them, where the first ones are shown.
    #[serde(skip)]
    left_out: usize,
}

impl Listing {
    pub(super) fn new(table: &Table, binary: &Binary, selection: &Selection) -> Self {
        let rows = rows(table);
        let line = |row: &Row, in_force| Line {
            address: binary.address_of(row.start),
            file_offset: row.start,
            bytes: row.end - row.start,
            function: binary.function_at(row.start),
            rule: InWords { rule: row.rule, arch: table.arch }.to_string(),
            in_force,
        };
        let mut left_out = 0;
        let lines = match selection {
            Selection::All => rows.iter().map(|row| line(row, false)).collect(),
            Selection::First => {
                left_out = rows.len().saturating_sub(FIRST);
                rows.iter().take(FIRST).map(|row| line(row, false)).collect()
            }
            Selection::Around(offset) => {
                let after = rows.partition_point(|row| row.start <= *offset);
                let from = after.saturating_sub(1 + NEIGHBOURS);
                let shown = rows.iter().skip(from).take(1 + 2 * NEIGHBOURS);
                shown.map(|row| line(row, (row.start..row.end).contains(offset))).collect()
            }
            Selection::Ranges(ranges) => {
                let clipped = ranges.iter().flat_map(|range| clip(&rows, *range));
                clipped.map(|row| line(&row, false)).collect()
            }
        };
        Self { lines, left_out }
    }
}

/// What lies between two offsets; a row that begins before is shown as if it began there.
fn clip(rows: &[Row], (start, end): (u64, u64)) -> impl Iterator<Item = Row> {
    let first = rows.partition_point(|row| row.end <= start);
    let inside = rows.iter().skip(first).take_while(move |row| row.start < end);
    inside.map(move |row| Row { start: row.start.max(start), end: row.end.min(end), ..*row })
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>20}  {:>10}  rule", "address", "offset")?;
        let mut function = None;
        for line in &self.lines {
            if line.function != function {
                function.clone_from(&line.function);
                writeln!(f, "{}:", line.function.as_deref().unwrap_or("(no symbol)"))?;
            }
            let mark = if line.in_force { '>' } else { ' ' };
            let address = line.address.map_or("-".to_owned(), |address| format!("{address:#x}"));
            writeln!(f, "{mark}{address:>19}  {:>#10x}  {}", line.file_offset, line.rule)?;
        }
        if self.left_out > 0 {
            writeln!(
                f,
                "... and {} more; show them with --rows, or some with --address or --function",
                self.left_out
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_clipped_to_what_was_asked_for() {
        let row = |start, end| Row { start, end, rule: Rule::NO_INFO };
        let rows = [row(0, 10), row(10, 20), row(20, 30)];
        let check = |range, expected: &[Row]| {
            assert_eq!(clip(&rows, range).collect::<Vec<_>>(), expected, "{range:?}");
        };
        check((5, 25), &[row(5, 10), row(10, 20), row(20, 25)]);
        check((10, 20), &[row(10, 20)]);
        check((12, 13), &[row(12, 13)]);
        check((30, 40), &[]);
    }
}
