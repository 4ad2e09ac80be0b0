//! What a compilation found, and what became of it.

use std::collections::HashSet;

use everflame_agent_common::unwind::{Kind, Rule};
use foldhash::fast::RandomState;

use crate::rules::Cause;
use crate::table::{Page, Shard};

/// Where a table's rules come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// There is no call frame information: all code is taken to keep frame pointers.
    #[default]
    None,
    /// `.eh_frame`.
    EhFrame,
    /// `.debug_frame`.
    DebugFrame,
    /// `.eh_frame`, and `.debug_frame` for functions that it leaves out.
    Both,
}

/// Counts of one compilation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Where the rules come from.
    pub source: Source,
    /// Whether Go's linker made the file.
    pub is_go: bool,
    /// Functions (FDEs) with code in an executable segment.
    pub functions: u64,
    /// Functions of which nothing has a rule.
    pub functions_without_rule: u64,
    /// FDEs that cannot be read, or whose CIE cannot.
    pub functions_malformed: u64,
    /// FDEs whose addresses lie in no executable segment, such as those that a linker has
    /// thrown away.
    pub functions_outside: u64,
    /// FDEs cut short or left out because another one claims the same code.
    pub functions_overlapping: u64,
    /// Bytes of sections that are no entries.
    pub bytes_malformed: u64,
    /// `.debug_frame` was there and could not be used.
    pub debug_frame_unusable: bool,
    /// Rows of call frame information, before equal neighbours are merged.
    pub rows_read: u64,
    /// Rows in pages.
    pub rows: u64,
    /// Different rules in the whole table.
    pub rules: u64,
    /// Rows in pages, by the number of their [`Kind`].
    pub rows_by_kind: [u64; Kind::ALL.len()],
    /// Rows read that have no rule, by the number of their [`Cause`].
    pub unsupported: [u64; Cause::ALL.len()],
    /// Bytes of row pages and index pages.
    pub page_bytes: u64,
}

impl TableStats {
    /// Counts what is in the finished pages.
    pub(crate) fn count_pages(&mut self, shards: &[Shard]) {
        let mut rules: HashSet<Rule, RandomState> = HashSet::default();
        for shard in shards {
            // A shard of one page needs no index page.
            let pages = shard.pages.len() + usize::from(shard.pages.len() > 1);
            self.page_bytes += (pages * size_of::<Page>()) as u64;
            for (_, rule) in shard.rows() {
                self.rows += 1;
                self.rows_by_kind[rule.kind() as usize] += 1;
                rules.insert(rule);
            }
        }
        self.rules = rules.len() as u64;
    }
}
