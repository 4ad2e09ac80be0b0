//! The layout of a process's memory as the BPF programs look it up. Pure.

use everflame_agent_common::unwind::page::{
    LAYOUT_OFFSET_UNIT, MAX_FILE_OFFSET, MAX_LAYOUT_ENTRIES, Page, UNUSED, WORDS, shard,
};

use crate::process::{Mapping, Mappings};

/// A part of a file's table, and the slot that it has in the shard map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShardSlot {
    /// File offsets covered: from here ...
    pub(super) start_offset: u32,
    /// ... up to here.
    pub(super) end_offset: u32,
    /// The slot.
    pub(super) slot: u32,
}

/// What is known of a mapping's code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// One of the constants of [`shard`]: the same for the whole mapping.
    Uniform(u32),
    /// The shards of its file, sorted.
    Shards(Vec<ShardSlot>),
}

/// Memory from `start` up to the next stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// First address.
    pub(super) start: u64,
    /// What lies there, as a layout page has it.
    pub(super) what: u64,
}

const UNMAPPED: u64 = shard::UNMAPPED as u64;

/// All of memory in stretches, the first from address 0 on.
pub(super) fn stretches(
    mappings: &Mappings,
    mut content: impl FnMut(&Mapping) -> Content,
) -> Vec<Stretch> {
    let mut stretches = vec![Stretch { start: 0, what: UNMAPPED }];
    for mapping in mappings.iter() {
        // The kernel's half is nobody's.
        if mapping.start_avma >= UNUSED {
            break;
        }
        match content(mapping) {
            Content::Uniform(what) => push(&mut stretches, mapping.start_avma, what.into()),
            Content::Shards(shards) => push_shards(&mut stretches, mapping, &shards),
        }
        push(&mut stretches, mapping.end_avma.min(UNUSED), UNMAPPED);
    }
    stretches
}

/// Parts of the mapping that no shard covers hold no code.
fn push_shards(stretches: &mut Vec<Stretch>, mapping: &Mapping, shards: &[ShardSlot]) {
    const NO_INFO: u64 = shard::NO_INFO as u64;
    let first = mapping.file_offset;
    let end = first.saturating_add(mapping.end_avma - mapping.start_avma).min(MAX_FILE_OFFSET);
    let address = |offset: u64| mapping.start_avma + (offset - first);
    push(stretches, mapping.start_avma, NO_INFO);
    for covered in shards {
        let start = first.max(covered.start_offset.into());
        let shard_end = end.min(covered.end_offset.into());
        // What a mapping shows of a file begins at a page.
        if start >= shard_end || !start.is_multiple_of(LAYOUT_OFFSET_UNIT) {
            continue;
        }
        let what = ((start / LAYOUT_OFFSET_UNIT) << 32) | u64::from(covered.slot);
        push(stretches, address(start), what);
        push(stretches, address(shard_end), NO_INFO);
    }
}

/// A stretch that begins where the one before does takes its place.
fn push(stretches: &mut Vec<Stretch>, start: u64, what: u64) {
    if stretches.last().is_some_and(|last| last.start == start) {
        stretches.pop();
    }
    stretches.push(Stretch { start, what });
}

/// Layout pages for these stretches.
pub(super) fn pages(stretches: &[Stretch]) -> Vec<Page> {
    stretches.chunks(MAX_LAYOUT_ENTRIES).map(page).collect()
}

/// The page over such pages; `ids` are theirs. `None` if they are too many for one.
pub(super) fn top_page(pages: &[Page], ids: &[u32]) -> Option<Page> {
    let stretches: Vec<Stretch> = pages
        .iter()
        .zip(ids)
        .map(|(page, id)| Stretch { start: page[0], what: u64::from(*id) })
        .collect();
    (stretches.len() <= MAX_LAYOUT_ENTRIES).then(|| page(&stretches))
}

fn page(stretches: &[Stretch]) -> Page {
    let mut page = [UNUSED; WORDS];
    for (at, stretch) in stretches.iter().enumerate() {
        page[at] = stretch.start;
        page[at + MAX_LAYOUT_ENTRIES] = stretch.what;
    }
    page
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use everflame_agent_common::unwind::PlainSign;
    use everflame_agent_common::unwind::page::find_stretch;

    use super::*;
    use crate::process::Backing;

    fn mappings(ranges: &[(u64, u64, u64)]) -> Mappings {
        let mut mappings = Mappings::default();
        for &(start_avma, end_avma, file_offset) in ranges {
            mappings.insert(Mapping {
                start_avma,
                end_avma,
                file_offset,
                backing: Backing::Anonymous,
                path: Arc::from(""),
                mapped_ns: 0,
            });
        }
        mappings
    }

    fn slot(start_offset: u32, end_offset: u32, slot: u32) -> ShardSlot {
        ShardSlot { start_offset, end_offset, slot }
    }

    fn check(
        ranges: &[(u64, u64, u64)],
        content: impl FnMut(&Mapping) -> Content,
        expected: &[(u64, u64)],
    ) {
        let stretches = stretches(&mappings(ranges), content);
        let found: Vec<_> = stretches.iter().map(|s| (s.start, s.what)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn memory_between_mappings_is_unmapped() {
        let fp = u64::from(shard::FRAME_POINTER);
        check(
            &[(0x1000, 0x2000, 0), (0x2000, 0x3000, 0), (0x5000, 0x6000, 0)],
            |_| Content::Uniform(shard::FRAME_POINTER),
            &[(0, 0), (0x1000, fp), (0x2000, fp), (0x3000, 0), (0x5000, fp), (0x6000, 0)],
        );
    }

    #[test]
    fn mapping_shows_the_part_of_each_shard_that_it_maps() {
        let no_info = u64::from(shard::NO_INFO);
        check(
            &[(0x10000, 0x15000, 0x2000)],
            |_| Content::Shards(vec![slot(0x1000, 0x4000, 7), slot(0x4000, 0x6000, 8)]),
            &[
                (0, 0),
                (0x10000, 2 << 32 | 7),
                (0x12000, 4 << 32 | 8),
                (0x14000, no_info),
                (0x15000, 0),
            ],
        );
        check(
            &[(0x10000, 0x11000, 0x9000)],
            |_| Content::Shards(vec![slot(0x1000, 0x4000, 7)]),
            &[(0, 0), (0x10000, no_info), (0x11000, 0)],
        );
    }

    #[test]
    fn many_stretches_take_pages_under_a_page() {
        let ranges: Vec<_> = (1..1000).map(|n| (n * 0x10000, n * 0x10000 + 0x1000, 0)).collect();
        let stretches = stretches(&mappings(&ranges), |_| Content::Uniform(shard::FRAME_POINTER));
        let pages = pages(&stretches);
        assert_eq!(pages.len(), 8);
        let ids: Vec<u32> = (0..8).collect();
        let top = top_page(&pages, &ids).unwrap();
        for stretch in stretches {
            let id = find_stretch::<PlainSign>(&top, stretch.start).what;
            let page = &pages[usize::try_from(id).unwrap()];
            let found = find_stretch::<PlainSign>(page, stretch.start);
            assert_eq!((found.start, found.what), (stretch.start, stretch.what));
        }
        assert!(top_page(&vec![[0; WORDS]; 257], &[0; 257]).is_none());
    }
}
