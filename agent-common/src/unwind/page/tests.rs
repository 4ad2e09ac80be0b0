//! Searches in pages, against a plain look through all entries.

use std::vec::Vec;

use super::*;
use crate::unwind::{Kind, PlainSign};

/// A page with a row each at these offsets; row `i` has rule `i % rules`, which says so.
fn row_page(offsets: &[u32], rules: u64) -> Page {
    assert!(row_page_has_room(offsets.len(), rules as usize));
    let mut page = [0; WORDS];
    page[0] = offsets.len() as u64;
    for (at, offset) in offsets.iter().enumerate() {
        let row = (u64::from(*offset) << RULE_INDEX_BITS) | (at as u64 % rules);
        page[1 + at / 2] |= row << (at % 2 * 32);
    }
    for rule in 0..rules {
        page[WORDS - 1 - rule as usize] = marked(rule);
    }
    page
}

fn marked(rule: u64) -> u64 {
    rule << 10 | Kind::Cfa as u64
}

fn check_rows(offsets: &[u32], rules: u64) {
    let page = row_page(offsets, rules);
    let end = offsets.last().unwrap() + 10;
    let probes = offsets.iter().flat_map(|o| [o.saturating_sub(1), *o, o + 1]).chain([end]);
    for probe in probes {
        let at = offsets.iter().rposition(|offset| *offset <= probe).unwrap() as u64;
        let found = find_rule::<PlainSign>(&page, u64::from(probe));
        assert_eq!(found.bits(), marked(at % rules), "offset {probe} of {}", offsets.len());
    }
}

#[test]
fn row_in_force_is_found() {
    check_rows(&[0], 1);
    check_rows(&[0, 1], 2);
    check_rows(&[0, 5, 6, 7, 300], 3);
    check_rows(&[0, MAX_ROW_PAGE_BYTES - 20], 2);
    let full = |rows: u32| (0..rows).map(|row| row * 3).collect::<Vec<u32>>();
    check_rows(&full(1020), 1);
    check_rows(&full(511), 255);
    check_rows(&full(2), 510);
    for rows in 1..80 {
        check_rows(&full(rows), 5);
    }
}

#[test]
fn page_is_full_when_rows_and_rules_meet() {
    assert!(row_page_has_room(1020, 1));
    assert!(!row_page_has_room(1021, 1));
    assert!(!row_page_has_room(1020, 2));
    assert!(row_page_has_room(0, 511));
    assert!(!row_page_has_room(1, 511));
}

#[test]
fn row_page_that_covers_an_offset_is_found() {
    for count in [1usize, 2, 3, 255, 256, 511, 512] {
        let mut page = [UNUSED; WORDS];
        for (at, word) in page.iter_mut().take(count).enumerate() {
            *word = (1000 + at as u64 * 10) << 32 | (7 + at as u64);
        }
        for at in 0..count as u64 {
            for inside in [0, 9] {
                let found = find_row_page::<PlainSign>(&page, 1000 + at * 10 + inside);
                assert_eq!(found, (1000 + at * 10, 7 + at as u32));
            }
        }
        let last = count as u64 - 1;
        let found = find_row_page::<PlainSign>(&page, MAX_FILE_OFFSET - 1);
        assert_eq!(found, (1000 + last * 10, 7 + last as u32));
    }
}

#[test]
fn stretch_of_memory_is_found() {
    for count in [1usize, 2, 3, 127, 128, 255, 256] {
        let mut page = [UNUSED; WORDS];
        for at in 0..count {
            page[at] = at as u64 * 0x1_0000_0000;
            page[MAX_LAYOUT_ENTRIES + at] = at as u64 + 50;
        }
        for at in 0..count as u64 {
            for inside in [0, 0xffff_ffff] {
                let found = find_stretch::<PlainSign>(&page, at * 0x1_0000_0000 + inside);
                let end = if at + 1 < count as u64 {
                    (at + 1) * 0x1_0000_0000
                } else if count < MAX_LAYOUT_ENTRIES {
                    UNUSED
                } else {
                    0
                };
                let start = at * 0x1_0000_0000;
                assert_eq!(found, Stretch { start, end, what: at + 50 });
            }
        }
        let found = find_stretch::<PlainSign>(&page, (1 << 56) - 1);
        assert_eq!(found.what, count as u64 + 49);
    }
}

#[test]
fn hostile_pages_and_keys_do_no_harm() {
    for fill in [0, u64::MAX, UNUSED, 1 << 63, 0xffff_ffff] {
        let page = [fill; WORDS];
        for key in [0, 1, u64::MAX, UNUSED, 1 << 63] {
            find_rule::<PlainSign>(&page, key);
            find_row_page::<PlainSign>(&page, key);
            find_stretch::<PlainSign>(&page, key);
        }
    }
}

#[test]
fn words_are_where_the_programs_read_them() {
    use core::mem::offset_of;
    let shard = Shard { root: 1, depth: 2, start_offset: 3, end_offset: 4, used: 5 };
    assert_eq!(shard.to_words(), [2 << 32 | 1, 4 << 32 | 3, 5]);
    assert_eq!((offset_of!(Shard, depth), offset_of!(Shard, end_offset)), (4, 12));
    let layout = Layout { generation: 1, root: 2, depth: 3, exec_ns: 4, mapped_ns: 5, sealed: 6 };
    assert_eq!(layout.to_words(), [1, (3 << 32) | 2, 4, 5, 6]);
    assert_eq!((offset_of!(Layout, root), offset_of!(Layout, depth)), (8, 12));
}
