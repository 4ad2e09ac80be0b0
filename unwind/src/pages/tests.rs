//! Packed rows against the rows that went in.

use everflame_agent_common::unwind::{FrameRule, ReturnAddress, SavedFramePointer};
use proptest::prelude::*;

use super::*;
use crate::elf::Arch;
use crate::stats::TableStats;
use crate::table::Table;

fn rule(number: u32) -> Rule {
    let frame = FrameRule {
        base: 7,
        offset: i64::from(number) * 8,
        frame_pointer: SavedFramePointer::Unchanged,
        return_address: ReturnAddress::AtCfa(-8),
    };
    Rule::cfa(frame).unwrap()
}

/// Rows as (offset, number of a rule).
fn build(start: u32, rows: &[(u32, u32)], end: u32) -> Table {
    let mut builder = Builder::new(start);
    for (offset, number) in rows {
        builder.push(*offset, rule(*number));
    }
    let shards = builder.finish(end);
    Table { arch: Arch::X86_64, shards, stats: TableStats::default() }
}

/// Builds a table and looks up what is at, before and behind each row.
fn check(start: u32, rows: &[(u32, u32)], end: u32) -> Table {
    let table = build(start, rows, end);
    check_format(&table, start, end);
    let expected = |offset: u32| {
        let after = rows.partition_point(|(first, _)| *first <= offset);
        after.checked_sub(1).map_or(Rule::NO_INFO, |at| rule(rows[at].1))
    };
    let probes = rows.iter().flat_map(|(first, _)| [first.saturating_sub(1), *first, first + 1]);
    for offset in probes.chain([start, end - 1]).filter(|offset| (start..end).contains(offset)) {
        assert_eq!(table.rule_at(u64::from(offset)), expected(offset), "{offset:#x}");
    }
    assert_eq!(table.rule_at(u64::from(end.next_multiple_of(BLOCK))), Rule::NO_INFO);
    table
}

fn check_format(table: &Table, start: u32, end: u32) {
    let mut covered = start - start % BLOCK;
    for shard in &table.shards {
        assert_eq!(shard.start_offset, covered);
        assert!(shard.end_offset > shard.start_offset);
        assert_eq!((shard.start_offset % BLOCK, shard.end_offset % BLOCK), (0, 0));
        assert!((1..=MAX_INDEX_ENTRIES).contains(&shard.pages.len()));
        assert_eq!(shard.first_offsets.len(), shard.pages.len());
        assert_eq!(shard.first_offsets[0], shard.start_offset);
        assert!(shard.first_offsets.is_sorted_by(|a, b| a < b));
        assert!(shard.first_offsets.iter().all(|first| *first < shard.end_offset));
        for page in &shard.pages {
            // The first row has offset 0.
            assert_eq!(page[1] >> RULE_INDEX_BITS & u64::from(MAX_ROW_PAGE_BYTES - 1), 0);
        }
        covered = shard.end_offset;
    }
    assert_eq!(covered, end.next_multiple_of(BLOCK));
    let rows: Vec<_> = table.rows().map(|(offset, _)| offset).collect();
    assert!(rows.is_sorted_by(|a, b| a < b));
}

#[test]
fn before_the_first_row_nothing_is_known() {
    let table = check(0x1234, &[(0x1240, 2)], 0x3000);
    assert_eq!(table.shards.len(), 1);
    assert_eq!(table.rows().collect::<Vec<_>>(), [(0x1000, Rule::NO_INFO), (0x1240, rule(2))]);
}

#[test]
fn equal_neighbours_are_one_row() {
    let table = check(0, &[(0, 1), (0x10, 1), (0x5000, 1), (0x5001, 2)], 0x6000);
    assert_eq!(table.rows().count(), 2);
}

#[test]
fn row_without_extent_is_forgotten() {
    let table = build(0, &[(0, 1), (0x10, 2), (0x10, 3), (0x20, 4), (0x20, 3)], 0x1000);
    let rows: Vec<_> = table.rows().collect();
    assert_eq!(rows, [(0, rule(1)), (0x10, rule(3))]);
}

#[test]
fn page_ends_where_its_offsets_end() {
    let far = MAX_ROW_PAGE_BYTES;
    let table = check(0, &[(0, 1), (far - 1, 2)], far * 4);
    assert_eq!(table.shards[0].pages.len(), 1);
    let table = check(0, &[(0, 1), (far, 2), (far * 3, 3)], far * 4);
    assert_eq!(table.shards[0].first_offsets, [0, far, far * 3]);
}

#[test]
fn page_ends_when_rows_and_rules_fill_it() {
    // Two rules: 1 + 510 + 1 words would be one too few for the second rule.
    let rows: Vec<_> = (0..5000).map(|row| (row * 3, row % 2)).collect();
    let table = check(0, &rows, 15_000);
    assert_eq!(table.shards[0].pages[0][0], 1018);
    // Each row with a rule of its own.
    let rows: Vec<_> = (0..5000).map(|row| (row * 3, row)).collect();
    let table = check(0, &rows, 15_000);
    assert_eq!(table.shards[0].pages[0][0], 340);
}

#[test]
fn shard_ends_at_a_block_and_the_next_repeats_the_row() {
    // A row per byte and no rule twice in a page: 512 pages are full after 170 KiB.
    let rows: Vec<_> = (0..200_000).map(|row| (row, row)).collect();
    let table = check(0, &rows, 200_000);
    assert_eq!(table.shards.len(), 2);
    assert!(table.shards[0].pages.len() > MAX_INDEX_ENTRIES - 16);

    // Rows that begin in the midst of blocks.
    let rows: Vec<_> = (0..200_000).map(|row| (row * 100 + 50, row)).collect();
    let table = check(0, &rows, 20_000_000);
    let second = &table.shards[1];
    let (first, carried) = second.rows().next().unwrap();
    assert_eq!(first, second.start_offset);
    assert_eq!(carried, table.rule_at(u64::from(first) - 1));
}

#[test]
fn dictionary_survives_more_pages_than_it_counts() {
    // Page numbers have 16 bits; each page is forced by its distance from the one before.
    let mut open = OpenPage::default();
    for number in 0..70_000 {
        assert!(open.try_push(Row { offset: number, rule: rule(number % 7) }));
        let (first, page) = open.take().unwrap();
        assert_eq!((first, page[WORDS - 1]), (number, rule(number % 7).bits()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_rows_are_found(
        start in 0_u32..10_000,
        steps in prop::collection::vec((prop_oneof![
            8 => 1_u32..40,
            1 => 1_u32..20_000,
            1 => Just(0_u32),
            1 => MAX_ROW_PAGE_BYTES - 2..MAX_ROW_PAGE_BYTES + 2,
        ], 0_u32..600), 1..3000),
        rest in 1_u32..10_000,
    ) {
        let mut offset = start;
        let mut rows: Vec<(u32, u32)> = Vec::new();
        for (step, number) in steps {
            let Some(next) = offset.checked_add(step).filter(|next| *next < 0x7000_0000) else {
                break;
            };
            offset = next;
            // The last of several at one offset is in force.
            rows.retain(|row| row.0 != offset || step != 0);
            rows.push((offset, number));
        }
        check(start, &rows, offset + rest);
    }
}
