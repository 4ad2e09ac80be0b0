//! Which code each function covers, in file offsets.

use crate::entries::{Budget, Entry, Reader};
use crate::error::CompileError;
use crate::frames::Kind;
use crate::limits::Limits;
use crate::segments::Segments;
use crate::stats::TableStats;

/// The code that one FDE describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    /// First file offset.
    pub(crate) start: u32,
    /// Where its entry begins in its section.
    pub(crate) entry: u32,
    /// File offset behind the last.
    pub(crate) end: u32,
    /// Which section it is in.
    pub(crate) kind: Kind,
}

/// The extents of all functions of one section, sorted, not overlapping.
pub(crate) fn collect(
    reader: &mut Reader<'_>,
    code: &Segments,
    limits: &Limits,
    budget: &mut Budget,
    stats: &mut TableStats,
) -> Result<Vec<Extent>, CompileError> {
    let kind = reader.frames.kind;
    let mut extents = Vec::new();
    let mut entries = reader.frames.entries();
    for position in entries.by_ref() {
        budget.spend(1)?;
        let function = match reader.entry(position, budget)? {
            Entry::Common => continue,
            Entry::Malformed => {
                stats.functions_malformed += 1;
                continue;
            }
            Entry::Function(function) => function,
        };
        let start = function.fde.initial_address();
        let end = start.saturating_add(function.fde.len());
        match (code.offsets(start, end), u32::try_from(position)) {
            (Some((start, end)), Ok(entry)) => extents.push(Extent { start, entry, end, kind }),
            _ => stats.functions_outside += 1,
        }
        if extents.len() as u64 > u64::from(limits.functions) {
            let (found, limit) = (extents.len() as u64, u64::from(limits.functions));
            return Err(CompileError::TooLarge { what: "functions", found, limit });
        }
    }
    stats.bytes_malformed += entries.left() as u64;
    extents.sort_unstable();
    clip(&mut extents, stats);
    Ok(extents)
}

/// Where functions overlap, the one that begins later is right, as it is for those who look
/// into `.eh_frame_hdr`: the last one that does not begin behind an address. Of those that
/// begin at the same address it is the first in the section.
fn clip(extents: &mut Vec<Extent>, stats: &mut TableStats) {
    let count = extents.len();
    extents.dedup_by_key(|extent| extent.start);
    stats.functions_overlapping += (count - extents.len()) as u64;
    let mut next_start = u32::MAX;
    for extent in extents.iter_mut().rev() {
        if extent.end > next_start {
            extent.end = next_start;
            stats.functions_overlapping += 1;
        }
        next_start = extent.start;
    }
}

/// Adds those of `more` that do not overlap any that are there.
pub(crate) fn add_missing(extents: &mut Vec<Extent>, more: Vec<Extent>) {
    let known = extents.len();
    for extent in more {
        let first_behind = extents[..known].partition_point(|known| known.end <= extent.start);
        if extents[..known].get(first_behind).is_none_or(|known| known.start >= extent.end) {
            extents.push(extent);
        }
    }
    extents.sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(kind: Kind, of: &[(u32, u32)]) -> Vec<Extent> {
        let extent = |(at, &(start, end)): (usize, &(u32, u32))| {
            let entry = at as u32;
            Extent { start, entry, end, kind }
        };
        of.iter().enumerate().map(extent).collect()
    }

    fn check_clipped(of: &[(u32, u32)], expected: &[(u32, u32)], overlapping: u64) {
        let mut clipped = extents(Kind::EhFrame, of);
        clipped.sort_unstable();
        let mut stats = TableStats::default();
        clip(&mut clipped, &mut stats);
        let found: Vec<_> = clipped.iter().map(|extent| (extent.start, extent.end)).collect();
        assert_eq!((found.as_slice(), stats.functions_overlapping), (expected, overlapping));
    }

    #[test]
    fn later_start_wins() {
        check_clipped(&[(0, 10), (10, 20)], &[(0, 10), (10, 20)], 0);
        check_clipped(&[(0, 100), (40, 50)], &[(0, 40), (40, 50)], 1);
        check_clipped(&[(5, 10), (0, 6), (5, 20)], &[(0, 5), (5, 10)], 2);
    }

    #[test]
    fn debug_frame_adds_what_eh_frame_leaves_out() {
        let mut all = extents(Kind::EhFrame, &[(10, 20), (40, 50)]);
        let more = extents(Kind::DebugFrame, &[(0, 10), (5, 11), (12, 14), (20, 40), (45, 60)]);
        add_missing(&mut all, more);
        let found: Vec<_> = all.iter().map(|extent| (extent.start, extent.kind)).collect();
        let (eh, debug) = (Kind::EhFrame, Kind::DebugFrame);
        assert_eq!(found, [(0, debug), (10, eh), (20, debug), (40, eh)]);
    }
}
