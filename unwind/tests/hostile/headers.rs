//! ELF headers with lies in them.

use everflame_unwind::{CompileError, Limits, Source};

use crate::compile_quickly;
use crate::file::{FRAMES, File, Frames, TEXT, TEXT_SIZE};

fn small() -> Vec<u8> {
    let mut frames = Frames::new();
    frames.fde(0, 0, 32, &[0x41, 0x0e, 16, 0x86, 2]);
    frames.fde(0, 64, 32, &[0x41, 0x0e, 24]);
    File::eh_frame(frames.0)
}

/// The parts of a file that are worth lying in: all but `.text`.
fn interesting(file: &[u8]) -> impl Iterator<Item = usize> {
    (0..120).chain(FRAMES as usize..file.len())
}

#[test]
fn file_may_end_anywhere() {
    let file = small();
    for end in interesting(&file) {
        if let Ok(table) = compile_quickly(&file[..end], &Limits::default()) {
            // Without its section headers it says nothing.
            assert_eq!(table.stats.source, Source::None, "{end}");
        }
    }
    let error = compile_quickly(&[], &Limits::default()).unwrap_err();
    assert!(matches!(error, CompileError::Read { offset: 0, .. }), "{error}");
}

#[test]
fn any_byte_may_be_wrong() {
    let mut file = small();
    for at in interesting(&file).collect::<Vec<_>>() {
        let right = file[at];
        for wrong in [0, 1, 0x7f, 0x80, 0xff, right ^ 1, right ^ 0x80, right.wrapping_add(1)] {
            file[at] = wrong;
            if let Ok(table) = compile_quickly(&file, &Limits::default()) {
                assert!(table.stats.rows_read < 1000);
                for offset in [0, TEXT, TEXT + 33, FRAMES, u64::from(u32::MAX)] {
                    table.rule_at(offset);
                }
            }
        }
        file[at] = right;
    }
}

#[test]
fn what_is_not_ours_is_named() {
    let mut file = small();
    file[18] = 40; // EM_ARM
    let error = compile_quickly(&file, &Limits::default()).unwrap_err();
    assert!(matches!(error, CompileError::UnsupportedMachine { machine: 40 }), "{error}");
    let mut file = small();
    file[16] = 1; // ET_REL
    let error = compile_quickly(&file, &Limits::default()).unwrap_err();
    assert!(matches!(error, CompileError::UnsupportedType { kind: 1 }), "{error}");
    for (at, wrong) in [(0, 0), (4, 1), (5, 2)] {
        let mut file = small();
        file[at] = wrong;
        let error = compile_quickly(&file, &Limits::default()).unwrap_err();
        assert!(matches!(error, CompileError::NotElf64), "{error}");
    }
}

#[test]
fn segments_beyond_the_file_are_cut() {
    let mut file = File::new(".eh_frame", Frames::new().0);
    file.segments = vec![
        (1, 5, TEXT, TEXT, u64::MAX),
        (1, 5, TEXT, TEXT + 16, TEXT_SIZE),
        (1, 5, u64::MAX, 0, u64::MAX),
        (1, 5, 0, u64::MAX - 10, u64::MAX),
    ];
    let file = file.build();
    let table = compile_quickly(&file, &Limits::default()).unwrap();
    let end = table.shards.last().unwrap().end_offset;
    assert!(u64::from(end) <= (file.len() as u64).next_multiple_of(4096));
}

#[test]
fn file_without_code_is_refused() {
    let mut file = File::new(".eh_frame", Frames::new().0);
    file.segments = vec![(1, 4, TEXT, TEXT, TEXT_SIZE)];
    let error = compile_quickly(&file.build(), &Limits::default()).unwrap_err();
    assert!(matches!(error, CompileError::NoCode), "{error}");
}

#[test]
fn frames_are_found_through_the_segment_where_there_are_no_section_headers() {
    let mut frames = Frames::new();
    frames.fde(0, 0, 32, &[0x41, 0x0e, 16]);
    frames.0.extend([0; 4]);
    // Behind the terminator lies what is no entry.
    frames.0.extend([0xff; 64]);
    let header_at = frames.0.len() as u64;
    // Version 1; pointer relative to its place, 4 bytes; no table.
    frames.0.extend([1, 0x1b, 0xff, 0xff]);
    frames.0.extend((-(header_at as i32 + 4)).to_le_bytes());
    frames.0.extend([0; 16]);
    let mut file = File::new(".eh_frame", frames.0);
    let header = FRAMES + header_at;
    file.segments.push((1, 4, FRAMES, FRAMES, file.frames.len() as u64));
    file.segments.push((0x6474_e550, 4, header, header, 8));
    let mut file = file.build();
    file[40..48].fill(0); // e_shoff
    let table = compile_quickly(&file, &Limits::default()).unwrap();
    assert_eq!((table.stats.functions, table.stats.functions_malformed), (1, 0));
    crate::check_rules(&table, &[(0, "cfa=rsp+8  ra=[cfa-8]"), (1, "cfa=rsp+16  ra=[cfa-8]")]);
}

#[test]
fn machine_without_frames_keeps_frame_pointers() {
    let file = File::eh_frame(Vec::new());
    let table = compile_quickly(&file, &Limits::default()).unwrap();
    assert_eq!(table.stats.source, Source::None);
    crate::check_rules(&table, &[(0, "frame pointer"), (TEXT_SIZE - 1, "frame pointer")]);
}
