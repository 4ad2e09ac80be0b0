//! Tables for the terminal: numbers to the right, names to the left, the last column
//! takes what width is left.
//!
//! Names come from other people's profiles: control characters are shown as a
//! replacement character, so that a name cannot steer the terminal.

use std::io::{self, IsTerminal};

/// The least that is kept of the last column, however narrow the terminal.
const MIN_LAST_WIDTH: usize = 20;

/// Columns whose title begins with `<` hold text and are aligned to the left.
pub(crate) struct Table<'a> {
    titles: Vec<&'a str>,
    rows: Vec<Vec<String>>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(titles: &[&'a str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The table as lines that fit into `width` columns, if there is a width.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let titles: Vec<&str> =
            self.titles.iter().map(|title| title.trim_start_matches('<')).collect();
        let mut widths: Vec<usize> = titles.iter().map(|title| title.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let before_last: usize = widths.iter().rev().skip(1).map(|width| width + 2).sum();
        let last_width = width.map(|width| width.saturating_sub(before_last).max(MIN_LAST_WIDTH));

        let mut out = String::new();
        let header: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for (index, cell) in row.iter().enumerate() {
                let is_last = index + 1 == row.len();
                let width = widths.get(index).copied().unwrap_or(0);
                let is_text = self.titles.get(index).is_some_and(|title| title.starts_with('<'));
                if is_last {
                    line.push_str(&fit(cell, last_width));
                } else if is_text {
                    line.push_str(&format!("{cell:<width$}  "));
                } else {
                    line.push_str(&format!("{cell:>width$}  "));
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// The width of the terminal that stdout is, or none when it is not one.
pub(crate) fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(&stdout)
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0)
}

/// At most `width` characters: the beginning and the end of a name tell more than its
/// middle.
pub(crate) fn fit(text: &str, width: Option<usize>) -> String {
    let count = text.chars().count();
    let Some(width) = width.filter(|width| count > *width) else { return text.to_owned() };
    let tail = width.saturating_sub(1) / 3;
    let head = width.saturating_sub(1) - tail;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{start}…{end}")
}

/// Text without anything that a terminal would act on.
pub(crate) fn printable(text: &str) -> String {
    let acts = |c: char| {
        // Besides control characters, those that turn the direction of text around.
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<'static> {
        let mut table = Table::new(&["SELF", "<KIND", "<FUNCTION"]);
        table.row(["1 s", "cpu", "main"].map(str::to_owned).to_vec());
        table.row(["10 ms", "offcpu", "abcdefghijklmnopqrstuvwxyz"].map(str::to_owned).to_vec());
        table
    }

    #[test]
    fn numbers_go_right_and_text_goes_left() {
        assert_eq!(
            table().render(None),
            " SELF  KIND    FUNCTION\n\
             \u{20} 1 s  cpu     main\n\
             10 ms  offcpu  abcdefghijklmnopqrstuvwxyz\n"
        );
    }

    #[test]
    fn last_column_is_cut_in_the_middle_to_fit() {
        let rendered = table().render(Some(36));
        let last = rendered.lines().last().unwrap();
        assert_eq!(last, "10 ms  offcpu  abcdefghijklmn…uvwxyz");
        assert_eq!(last.chars().count(), 36);
        // Too narrow for anything: the name keeps its minimum.
        assert!(table().render(Some(1)).lines().last().unwrap().ends_with('z'));
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{202e}c\n"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
    }
}
