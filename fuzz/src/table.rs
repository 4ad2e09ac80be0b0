//! What must hold for every table, whatever it was made from.

use everflame_unwind::Table;
use everflame_unwind::cache::{CacheKey, entry};

/// The key that entries of the `cache` target are filed under.
pub fn entry_key() -> Option<CacheKey> {
    CacheKey::new(b"everflame", 4096)
}

/// Panics if the table is not one that a walk can rely on.
pub fn check_table(table: &Table) {
    // What the cache reads back it has checked: extents, order, numbers of rows and rules.
    let Some(key) = entry_key() else { return };
    let mut bytes = Vec::new();
    assert!(entry::write(&key, table, &mut bytes).is_ok());
    assert_eq!(bytes.len() as u64, entry::encoded_len(table));
    match entry::read(&key, bytes.len() as u64, &mut bytes.as_slice()) {
        Ok(read) => {
            assert_eq!(read.shards, table.shards);
            assert_eq!(read.stats, table.stats);
        }
        Err(error) => panic!("{error}: {table:?}"),
    }
    // A walk finds the row in force, at its first address and up to the next one.
    let mut rows = table.rows().peekable();
    let mut checked = 0;
    while let Some((offset, rule)) = rows.next() {
        assert_eq!(table.rule_at(offset.into()), rule, "at {offset:#x}");
        if let Some((next, _)) = rows.peek() {
            assert!(offset < *next, "{offset:#x} before {next:#x}");
            assert_eq!(table.rule_at(u64::from(*next) - 1), rule, "before {next:#x}");
        }
        checked += 1;
        if checked == 1000 {
            // Finding each of a million rows would take too long.
            break;
        }
    }
}
