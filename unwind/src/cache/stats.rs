//! A table's statistics as words, for its file.

use everflame_agent_common::unwind::Kind;

use crate::rules::Cause;
use crate::stats::{Source, TableStats};

const COUNTS: usize = 12;

/// Words that the statistics take.
pub(super) const WORDS: usize = COUNTS + Kind::ALL.len() + Cause::ALL.len();

/// Taken apart field by field, so that none is forgotten when one is added.
pub(super) fn encode(stats: &TableStats) -> [u64; WORDS] {
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
        rows,
        rules,
        rows_by_kind,
        unsupported,
        page_bytes,
    } = stats;
    let flags = u64::from(*is_go) | u64::from(*debug_frame_unusable) << 1;
    let counts: [u64; COUNTS] = [
        source_number(*source),
        flags,
        *functions,
        *functions_without_rule,
        *functions_malformed,
        *functions_outside,
        *functions_overlapping,
        *bytes_malformed,
        *rows_read,
        *rows,
        *rules,
        *page_bytes,
    ];
    let mut words = [0; WORDS];
    let all = counts.iter().chain(rows_by_kind).chain(unsupported);
    for (word, value) in words.iter_mut().zip(all) {
        *word = *value;
    }
    words
}

/// `None` if no statistics are written like this.
pub(super) fn decode(words: &[u64; WORDS]) -> Option<TableStats> {
    let (counts, rest) = words.split_first_chunk::<COUNTS>()?;
    let (rows_by_kind, rest) = rest.split_first_chunk()?;
    let unsupported = rest.first_chunk()?;
    let [
        source,
        flags,
        functions,
        functions_without_rule,
        functions_malformed,
        functions_outside,
        functions_overlapping,
        bytes_malformed,
        rows_read,
        rows,
        rules,
        page_bytes,
    ] = *counts;
    let source = SOURCES.into_iter().find(|known| source_number(*known) == source)?;
    (flags < 4).then_some(TableStats {
        source,
        is_go: flags & 1 != 0,
        functions,
        functions_without_rule,
        functions_malformed,
        functions_outside,
        functions_overlapping,
        bytes_malformed,
        debug_frame_unusable: flags & 2 != 0,
        rows_read,
        rows,
        rules,
        rows_by_kind: *rows_by_kind,
        unsupported: *unsupported,
        page_bytes,
    })
}

const SOURCES: [Source; 4] = [Source::None, Source::EhFrame, Source::DebugFrame, Source::Both];

fn source_number(source: Source) -> u64 {
    match source {
        Source::None => 0,
        Source::EhFrame => 1,
        Source::DebugFrame => 2,
        Source::Both => 3,
    }
}
