//! Any call frame information in an otherwise sound file.
#![no_main]

use everflame_fuzz::check_table;
use everflame_fuzz::image::{Shape, build};
use everflame_unwind::{Limits, compile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((shape, frames)) = bytes.split_first() else { return };
    let image = build(Shape::new(*shape), frames);
    if let Ok(table) = compile(&image.as_slice(), &Limits::default()) {
        check_table(&table);
    }
});
