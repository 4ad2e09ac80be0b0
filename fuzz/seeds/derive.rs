//! Makes the seeds of the targets `cache` and `step` from those of `compile`: tables as they
//! lie on disk, and their first pages with a stack that the rules can be followed on.
//!
//! Not committed, because their format is this version's: `cargo xtask fuzz` runs this with
//! the directory to put them in.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::Path;

use everflame_fuzz::entry_key;
use everflame_unwind::cache::entry;
use everflame_unwind::{Limits, Table, compile};

fn main() -> Result<(), Box<dyn Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let derived = std::env::args_os().nth(1).ok_or("usage: derive-seeds DIRECTORY")?;
    let derived = Path::new(&derived);
    let key = entry_key().ok_or("no key")?;
    for target in ["cache", "step"] {
        fs::create_dir_all(derived.join(target))?;
    }
    for file in fs::read_dir(seeds.join("compile"))? {
        let file = file?;
        let Ok(table) = compile(&fs::read(file.path())?.as_slice(), &Limits::default()) else {
            continue;
        };
        let mut bytes = Vec::new();
        entry::write(&key, &table, &mut bytes)?;
        fs::write(derived.join("cache").join(file.file_name()), bytes)?;
        fs::write(derived.join("step").join(file.file_name()), walk(&table))?;
    }
    Ok(())
}

/// A page, registers, and a stack on which all return addresses are that of the leaf.
fn walk(table: &Table) -> Vec<u8> {
    let Some(shard) = table.shards.first() else { return Vec::new() };
    let mut words = shard.pages.first().map_or(Vec::new(), |page| page.to_vec());
    let middle = table.rows().nth(table.rows().count() / 2).map_or(0, |(offset, _)| offset);
    let ip = 0x40_0000 + u64::from(middle - shard.start_offset) + 1;
    let stack = 0x7fff_0000;
    words.extend([ip, 0, stack + 64, 1]);
    words.extend([stack + 128; 32]);
    words.extend((0..64).flat_map(|frame| [stack + 16 * frame + 32, ip]));
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}
