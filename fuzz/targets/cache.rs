//! Any bytes as a table on disk, with a digest that is right.
#![no_main]

use everflame_fuzz::{check_table, entry_key};
use everflame_unwind::cache::entry;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (Some(key), Some((content, _))) = (entry_key(), bytes.split_last_chunk::<4>()) else {
        return;
    };
    let digest = crc32fast::hash(content).to_le_bytes();
    let file = [content, &digest].concat();
    if let Ok(table) = entry::read(&key, file.len() as u64, &mut file.as_slice()) {
        check_table(&table);
        let mut again = Vec::new();
        assert!(entry::write(&key, &table, &mut again).is_ok());
        assert!(again == file, "what is read is what was written");
    }
});
