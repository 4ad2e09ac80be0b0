//! What there is to say about a file, as text and as JSON.

use std::fmt;
use std::path::Path;

use everflame_agent_common::unwind::Kind;
use everflame_unwind::{Arch, Cause, Source, Table, TableStats};
use serde::Serialize;

use super::binary::Binary;
use super::rows::{Listing, rows};

/// Statistics of a file's table, and the rows that were asked for.
#[derive(Debug, Serialize)]
pub struct Report {
    file: String,
    machine: &'static str,
    build_id: Option<String>,
    /// `.eh_frame`, `.debug_frame`, `both`, or none.
    source: Option<&'static str>,
    made_by_go: bool,
    debug_frame_unusable: bool,
    functions: Functions,
    table: Size,
    /// All that is mapped as code, by what its rules do.
    code: Vec<Share>,
    /// Rows without a rule, by cause.
    unsupported: Vec<Unsupported>,
    rows: Listing,
}

/// FDEs.
#[derive(Debug, Serialize)]
struct Functions {
    usable: u64,
    without_rule: u64,
    malformed: u64,
    outside_code: u64,
    overlapping: u64,
    malformed_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Size {
    rows_read: u64,
    rows: u64,
    rules: u64,
    bytes: u64,
    /// Of pages, indexes over them included.
    bytes_per_row: f64,
}

/// Code with rules of one kind.
#[derive(Debug, Serialize)]
struct Share {
    kind: &'static str,
    rows: u64,
    code_bytes: u64,
    code_percent: f64,
}

#[derive(Debug, Serialize)]
struct Unsupported {
    cause: &'static str,
    rows: u64,
}

impl Report {
    pub(super) fn new(path: &Path, table: &Table, binary: &Binary, rows: Listing) -> Self {
        let TableStats {
            source,
            is_go,
            functions,
            functions_without_rule,
            functions_malformed,
            functions_outside,
            functions_overlapping,
            bytes_malformed,
            debug_frame_unusable,
            rows_read,
            rows: row_count,
            rules,
            rows_by_kind: _,
            unsupported,
            page_bytes,
        } = &table.stats;
        let causes = Cause::ALL.iter().zip(unsupported).filter(|(_, rows)| **rows > 0);
        Self {
            // Names can hold what terminals obey.
            file: path.display().to_string().replace(char::is_control, "?"),
            machine: match table.arch {
                Arch::X86_64 => "x86_64",
                Arch::Aarch64 => "aarch64",
            },
            build_id: binary.build_id.map(|build_id| build_id.to_string()),
            source: match source {
                Source::None => None,
                Source::EhFrame => Some(".eh_frame"),
                Source::DebugFrame => Some(".debug_frame"),
                Source::Both => Some(".eh_frame and .debug_frame"),
            },
            made_by_go: *is_go,
            debug_frame_unusable: *debug_frame_unusable,
            functions: Functions {
                usable: *functions,
                without_rule: *functions_without_rule,
                malformed: *functions_malformed,
                outside_code: *functions_outside,
                overlapping: *functions_overlapping,
                malformed_bytes: *bytes_malformed,
            },
            table: Size {
                rows_read: *rows_read,
                rows: *row_count,
                rules: *rules,
                bytes: *page_bytes,
                bytes_per_row: ratio(*page_bytes, *row_count),
            },
            code: shares(table, binary),
            unsupported: causes
                .map(|(cause, rows)| Unsupported { cause: cause.name(), rows: *rows })
                .collect(),
            rows,
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// What rules of a kind do, and in which order that is told.
const KINDS: [(Kind, &str); Kind::ALL.len()] = [
    (Kind::Cfa, "frame by register"),
    (Kind::CfaDeref, "frame by saved address"),
    (Kind::Plt, "linkage table"),
    (Kind::SignalFrame, "signal frame"),
    (Kind::EndOfStack, "end of stack"),
    (Kind::FramePointer, "frame pointer"),
    (Kind::Unsupported, "unsupported"),
    (Kind::NoInfo, "no information"),
];

fn shares(table: &Table, binary: &Binary) -> Vec<Share> {
    let mut counts = [(0, 0); Kind::ALL.len()];
    for row in rows(table) {
        let (rows, bytes) = &mut counts[row.rule.kind() as usize];
        let code = binary.code_bytes(row.start, row.end);
        *bytes += code;
        *rows += u64::from(code > 0);
    }
    let all: u64 = counts.iter().map(|(_, bytes)| bytes).sum();
    let found = KINDS.iter().map(|(kind, name)| (name, counts[*kind as usize]));
    found
        .filter(|(_, (rows, _))| *rows > 0)
        .map(|(kind, (rows, code_bytes))| Share {
            kind,
            rows,
            code_bytes,
            code_percent: 100.0 * ratio(code_bytes, all),
        })
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.file)?;
        let mut line = |what: &str, value: &dyn fmt::Display| writeln!(f, "  {what:<11}{value}");
        line("machine", &self.machine)?;
        line("build id", &self.build_id.as_deref().unwrap_or("none"))?;
        let source = match (self.source, self.made_by_go) {
            (Some(source), true) => format!("{source}; frame pointers where it says nothing (Go)"),
            (Some(source), false) => source.to_owned(),
            (None, true) => "none; frame pointers are followed, which Go keeps".to_owned(),
            (None, false) => {
                "none: the file has no call frame information. Frame pointers are followed, and \
                 stacks break where its code keeps none"
                    .to_owned()
            }
        };
        line("rules from", &source)?;
        if self.debug_frame_unusable {
            line("", &"there is a .debug_frame too, which is too large or damaged")?;
        }
        line("functions", &self.functions)?;
        line("table", &self.table)?;
        if let [first, rest @ ..] = &self.code[..] {
            line("code", first)?;
            for share in rest {
                line("", share)?;
            }
        }
        for Unsupported { cause, rows } in &self.unsupported {
            line("no rule", &format_args!("{rows} rows: {cause}"))?;
        }
        writeln!(f)?;
        self.rows.fmt(f)
    }
}

impl fmt::Display for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.usable)?;
        let counts = [
            (self.without_rule, "without any rule"),
            (self.malformed, "malformed and left out"),
            (self.outside_code, "outside the code"),
            (self.overlapping, "overlapping others"),
            (self.malformed_bytes, "bytes between them malformed"),
        ];
        counts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .try_for_each(|(count, what)| write!(f, ", {count} {what}"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows_read, rows, rules, bytes, bytes_per_row } = self;
        let kib = *bytes as f64 / 1024.0;
        write!(
            f,
            "{rows} rows of {rows_read} read, {rules} different rules, {kib:.0} KiB, \
             {bytes_per_row:.1} bytes a row"
        )
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, rows, code_bytes, code_percent } = self;
        write!(f, "{code_percent:6.2} %  {kind:<24}{code_bytes:>11} bytes in {rows} rows")
    }
}
