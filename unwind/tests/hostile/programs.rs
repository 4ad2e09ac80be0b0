//! Entries and programs that do what none may.

use everflame_unwind::{Cause, Limits, Source, Table};

use crate::file::{FRAMES, File, Frames, TEXT, TEXT_SIZE, USUAL};
use crate::{check_rules, compile_quickly};

const START: &str = "cfa=rsp+8  ra=[cfa-8]";
const PUSHED: &str = "cfa=rsp+16  ra=[cfa-8]";

fn compiled(frames: Vec<u8>) -> Table {
    compile_quickly(&File::eh_frame(frames), &Limits::default()).unwrap()
}

fn unsupported(table: &Table, cause: Cause) -> u64 {
    table.stats.unsupported[cause as usize]
}

/// A function with this program between two sound ones, which must survive.
fn check(program: &[u8], expected: &[(u64, &str)], malformed: u64) {
    let mut frames = Frames::new();
    frames.fde(0, 0, 16, &[0x41, 0x0e, 16]).fde(0, 16, 16, program).fde(
        0,
        32,
        16,
        &[0x41, 0x0e, 16],
    );
    let table = compiled(frames.0);
    check_rules(&table, &[(0, START), (1, PUSHED), (32, START), (33, PUSHED)]);
    check_rules(&table, expected);
    assert_eq!(unsupported(&table, Cause::Malformed), malformed, "{program:x?}");
}

#[test]
fn program_that_breaks_off_is_right_up_to_there() {
    // DW_CFA_advance_loc 4, then an instruction that does not exist.
    check(&[0x44, 0x3f], &[(16, START), (19, START), (20, "unsupported")], 1);
    // An offset that goes on forever.
    check(&[0x44, 0x0e, 0xff], &[(19, START), (20, "unsupported")], 1);
    // LEB128 of more than 64 bits.
    let huge = [0x0e, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    check(&huge, &[(16, "unsupported"), (31, "unsupported")], 1);
    // An expression longer than the section.
    check(&[0x0f, 0xff, 0xff, 0xff, 0xff, 0x0f], &[(16, "unsupported")], 1);
    // An expression that breaks off: the program goes on.
    check(&[0x0f, 1, 0x77, 0x44, 0x0c, 7, 8], &[(16, "unsupported"), (20, START)], 0);
}

#[test]
fn register_and_offset_outlive_an_expression() {
    // cfa=[rbp-8]; DW_CFA_def_cfa_offset 16; DW_CFA_def_cfa_register rsp.
    let program = [0x0f, 3, 0x76, 0x78, 0x06, 0x41, 0x0e, 16, 0x41, 0x0d, 7];
    let expression = "cfa=[rbp-8]  ra=[cfa-8]";
    check(&program, &[(16, expression), (17, expression), (18, PUSHED)], 0);
}

#[test]
fn remembered_states_are_limited() {
    let bomb = vec![0x0a; 1_000_000];
    check(&bomb, &[(16, "unsupported")], 1);
    check(&[0x0b], &[(16, "unsupported")], 1);
    // Two levels, as hand-written code has.
    let nested = [0x0a, 0x0e, 16, 0x0a, 0x0e, 24, 0x41, 0x0b, 0x41, 0x0b, 0x41];
    check(&nested, &[(16, "cfa=rsp+24  ra=[cfa-8]"), (17, PUSHED), (18, START)], 0);
}

#[test]
fn location_does_not_run_away() {
    // DW_CFA_advance_loc4 beyond the function: its own end holds.
    check(&[0x04, 0xff, 0xff, 0xff, 0xff, 0x0e, 16], &[(16, START), (31, START)], 0);
    // Many times 0 bytes.
    check(&vec![0x40; 100_000], &[(16, START)], 0);
    // DW_CFA_set_loc backwards, to somewhere in front of `.text`.
    let [a, b, c, d] = (-0x10_0800_i32).to_le_bytes();
    check(&[0x44, 0x01, a, b, c, d, 0x0e, 16], &[(16, START), (20, "unsupported")], 1);
    // A code alignment factor of 2^63 - 1.
    let mut frames = Frames::default();
    let mut body = vec![1, b'z', b'R', 0];
    body.extend([0xff; 8]);
    body.extend([0x7f, 0x78, 16, 1, 0x1b]);
    body.extend(USUAL);
    frames.entry(0, &body);
    frames.fde(0, 0, 16, &[0x02, 0xff, 0x0e, 16]);
    let table = compiled(frames.0);
    check_rules(&table, &[(0, "unsupported"), (15, "unsupported")]);
}

#[test]
fn offsets_that_do_not_fit_are_counted() {
    // DW_CFA_def_cfa_offset 2^30; rbp at CFA - 2^30 * 8; CFA from register 40.
    for program in [
        [0x0e, 0x80, 0x80, 0x80, 0x80, 0x04],
        [0x86, 0x80, 0x80, 0x80, 0x80, 0x04],
        [0x0d, 40, 0, 0, 0, 0],
    ] {
        let mut frames = Frames::new();
        frames.fde(0, 0, 16, &program);
        let table = compiled(frames.0);
        check_rules(&table, &[(0, "unsupported")]);
        assert_eq!(unsupported(&table, Cause::Range), 1, "{program:x?}");
        assert_eq!(table.stats.functions_without_rule, 1);
    }
}

#[test]
fn entries_that_point_astray_are_skipped() {
    let mut frames = Frames::new();
    frames.fde(0, 0, 16, &[]);
    let itself = frames.0.len() + 4;
    frames.fde(itself, 16, 16, &[]); // id 0: a CIE of sorts, which nobody uses
    let fde = frames.0.len();
    frames.fde(fde, 32, 16, &[]); // its CIE is an FDE: itself
    frames.entry(u32::MAX, &[0; 16]); // a CIE in front of the section
    let odd = frames.0.len();
    frames.fde(odd - 3, 48, 16, &[]); // a CIE in the midst of an entry
    frames.entry(4, &[]); // no room for anything
    frames.0.extend([0; 8]); // two terminators
    frames.fde(0, 64, 16, &[0x41, 0x0e, 16]);
    let table = compiled(frames.0);
    check_rules(&table, &[(0, START), (16, "no information"), (64, START), (65, PUSHED)]);
    assert_eq!(table.stats.functions, 2);
    assert_eq!(table.stats.functions_malformed, 4);
}

#[test]
fn section_that_breaks_off_is_right_up_to_there() {
    let mut frames = Frames::new();
    frames.fde(0, 0, 16, &[]);
    frames.0.extend([0xf0, 0xff, 0xff, 0x7f, 1, 2, 3, 4]);
    let table = compiled(frames.0.clone());
    assert_eq!((table.stats.functions, table.stats.bytes_malformed), (1, 8));
    // The same with a 64-bit length.
    frames.0.truncate(frames.0.len() - 8);
    frames.0.extend([0xff; 12]);
    let table = compiled(frames.0);
    assert_eq!((table.stats.functions, table.stats.bytes_malformed), (1, 12));
}

#[test]
fn overlapping_functions_are_clipped_the_same_way_always() {
    let mut frames = Frames::new();
    frames.fde(0, 32, 32, &[0x0e, 32]).fde(0, 0, 64, &[0x0e, 16]).fde(0, 32, 64, &[0x0e, 40]);
    let table = compiled(frames.0);
    let second = "cfa=rsp+32  ra=[cfa-8]";
    check_rules(&table, &[(0, PUSHED), (31, PUSHED), (32, second), (63, second)]);
    assert_eq!((table.stats.functions, table.stats.functions_overlapping), (2, 2));
}

#[test]
fn functions_outside_code_are_counted() {
    let mut frames = Frames::new();
    frames.fde(0, TEXT_SIZE, 16, &[]);
    frames.fde(0, TEXT.wrapping_neg(), 16, &[]); // address 0, where linkers send what they drop
    frames.fde(0, 0, 0, &[]);
    frames.fde(0, TEXT_SIZE - 8, u32::MAX, &[]);
    let table = compiled(frames.0);
    // A length of -1 is one of 2^64 - 1 bytes.
    assert_eq!((table.stats.functions, table.stats.functions_outside), (1, 3));
    check_rules(&table, &[(TEXT_SIZE - 1, START)]);
    assert_eq!(table.rule_at(FRAMES).bits(), 0);
}

#[test]
fn gaps_are_unknown_or_generated_code() {
    let mut frames = Frames::new();
    frames.fde(0, 0, 16, &[]).fde(0, 31, 1, &[]).fde(0, 48, 16, &[]).fde(0, 0x1_0040, 16, &[]);
    let table = compiled(frames.0);
    check_rules(
        &table,
        &[
            (30, "no information"),
            (32, "no information"),
            (47, "no information"),
            (64, "frame pointer"),
            (0x1_003f, "frame pointer"),
            (0x1_0050, "frame pointer"),
        ],
    );
}

#[test]
fn debug_frame_is_read_where_there_is_nothing_else() {
    let mut frames = Frames::default();
    let mut cie = vec![1, 0, 1, 0x78, 16];
    cie.extend(USUAL);
    frames.entry(u32::MAX, &cie);
    let mut fde = TEXT.to_le_bytes().to_vec();
    fde.extend(16_u64.to_le_bytes());
    fde.extend([0x41, 0x0e, 16]);
    frames.entry(0, &fde);
    let file = File::new(".debug_frame", frames.0).build();
    let table = compile_quickly(&file, &Limits::default()).unwrap();
    assert_eq!((table.stats.source, table.stats.functions), (Source::DebugFrame, 1));
    check_rules(&table, &[(0, START), (1, PUSHED)]);
}
