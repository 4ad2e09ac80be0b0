//! Too much of everything.

use std::io::Write;

use everflame_unwind::{CompileError, Limits};
use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::compile_quickly;
use crate::file::{File, Frames, USUAL};

fn check_too_large(file: &[u8], limits: &Limits, expected: &str) {
    match compile_quickly(file, limits).map(|table| table.stats) {
        Err(CompileError::TooLarge { what, .. }) => assert_eq!(what, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn section_is_not_read_beyond_the_limit() {
    let limits = Limits { section_bytes: 1000, ..Limits::default() };
    let file = File::eh_frame(vec![0; 1001]);
    check_too_large(&file, &limits, "bytes of a section");
}

#[test]
fn functions_and_rows_are_limited() {
    let mut frames = Frames::new();
    for function in 0..1000 {
        frames.fde(0, function * 16, 16, &[0x41, 0x0e, 16, 0x41, 0x0e, 24]);
    }
    let file = File::eh_frame(frames.0);
    assert!(compile_quickly(&file, &Limits::default()).is_ok());
    check_too_large(&file, &Limits { functions: 999, ..Limits::default() }, "functions");
    check_too_large(&file, &Limits { rows: 2999, ..Limits::default() }, "rows");
    let limits = Limits { instructions: 4000, ..Limits::default() };
    check_too_large(&file, &limits, "call frame instructions");
}

#[test]
fn section_full_of_instructions_is_done_in_time() {
    // One function, and another for each of its bytes: as much work as 64 MiB can ask for.
    let mut frames = Frames::new();
    let mut program = Vec::new();
    for row in 0..7_000_000_u32 {
        program.extend([0x41, 0x0e, (row % 2) as u8 * 8 + 8]);
        program.extend([0x86, (row % 100) as u8, 0x0a, 0x0b]);
    }
    frames.fde(0, 0, u32::MAX >> 1, &program);
    let file = File::eh_frame(frames.0);
    let table = compile_quickly(&file, &Limits::default()).unwrap();
    // The function's end is that of the code.
    assert_eq!(table.stats.rows_read, 0x10_0000);
}

#[test]
fn cies_are_limited_in_number_and_size() {
    let mut frames = Frames::default();
    for function in 0..1000 {
        let cie = frames.cie(1, &USUAL);
        frames.fde(cie, function * 16, 16, &[]);
    }
    let file = File::eh_frame(frames.0);
    check_too_large(&file, &Limits { cies: 999, ..Limits::default() }, "CIEs");

    let mut frames = Frames::default();
    let cie = frames.cie(1, &[0; 10_000]);
    frames.fde(cie, 0, 16, &[]);
    let table = compile_quickly(&File::eh_frame(frames.0), &Limits::default()).unwrap();
    assert_eq!((table.stats.functions, table.stats.functions_malformed), (0, 1));
}

#[test]
fn cies_that_lie_in_each_other_cost_no_more() {
    // In .debug_frame a CIE's augmentation string can run through all the CIEs behind it.
    let mut frames = Frames::default();
    let count = 400_000;
    for _ in 0..count {
        frames.0.extend([0xf0, 0x0f, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, b'S', b'S', b'S']);
    }
    frames.0.resize(frames.0.len() + 5000, b'S');
    let ends = frames.0.len();
    for function in 0..count {
        frames.entry(function * 12, &[b'S'; 16]);
    }
    // Entries are found one behind the other, so the first ones are skipped by one long one.
    let mut skipped = (ends as u32 + 4).to_le_bytes().to_vec();
    skipped.extend([0xff; 4]);
    skipped.append(&mut frames.0);
    let file = File::new(".debug_frame", skipped).build();
    match compile_quickly(&file, &Limits::default()) {
        Ok(table) => assert_eq!(table.stats.functions, 0),
        Err(CompileError::TooLarge { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn compressed_section_is_not_inflated_beyond_the_limit() {
    const SHF_COMPRESSED: u64 = 1 << 11;
    let compressed = |scheme: u32, contents: &[u8]| {
        let mut bytes = scheme.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(16_u64.to_le_bytes()); // a lie
        bytes.extend(1_u64.to_le_bytes());
        let mut encoder = ZlibEncoder::new(bytes, Compression::fast());
        encoder.write_all(contents).unwrap();
        let mut file = File::new(".debug_frame", encoder.finish().unwrap());
        file.section_flags = SHF_COMPRESSED;
        file.build()
    };
    let bomb = compressed(1, &vec![0; 100 << 20]);
    check_too_large(&bomb, &Limits::default(), "bytes of a section");
    assert!(compile_quickly(&compressed(1, &[0; 100]), &Limits::default()).is_ok());
    for broken in [compressed(2, &[]), compressed(7, &[])] {
        let error = compile_quickly(&broken, &Limits::default()).unwrap_err();
        assert!(matches!(error, CompileError::Decompress { .. }), "{error}");
    }
    let mut short = File::new(".debug_frame", vec![1, 0, 0]);
    short.section_flags = SHF_COMPRESSED;
    let error = compile_quickly(&short.build(), &Limits::default()).unwrap_err();
    assert!(matches!(error, CompileError::Decompress { .. }), "{error}");
}

#[test]
fn header_tables_are_limited() {
    let mut file = File::eh_frame(Frames::new().0);
    // 0 sections stands for a number in the first section's header.
    file[60..62].fill(0);
    let sections = u64::from_le_bytes(*file[40..].first_chunk().unwrap()) as usize;
    file[sections + 32..sections + 40].fill(0xff);
    // The program headers are sound, so the file is taken for one without sections.
    let table = compile_quickly(&file, &Limits::default()).unwrap();
    assert_eq!(table.stats.functions, 0);
    // 65,535 program headers.
    file[56..58].fill(0xff);
    assert!(compile_quickly(&file, &Limits::default()).is_err());
}
