//! Any bytes as an ELF file, which may change while it is read.
#![no_main]

use everflame_fuzz::check_table;
use everflame_fuzz::torn::TornFile;
use everflame_unwind::{Limits, compile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(table) = compile(&bytes, &Limits::default()) {
        check_table(&table);
    }
    // After how many reads, nothing else in the file says.
    let reads = bytes.last().copied().unwrap_or(0) % 16;
    if let Ok(table) = compile(&TornFile::new(bytes, reads), &Limits::default()) {
        check_table(&table);
    }
});
