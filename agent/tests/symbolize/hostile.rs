//! Files that are broken, or made to break their reader.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use everflame_agent::object::ObjectFile;
use everflame_agent::symbolize::{SymbolizeConfig, Symbolizer};
use object::{Object, ObjectSection};

use crate::binary::{self, Built, describe, run, symbolizer};

/// All offsets of a file are asked for, with a stride that meets code and data.
fn resolve_everything(object: &Arc<ObjectFile>, len: usize) -> Symbolizer {
    let offsets: Vec<u64> = (0..len as u64 + 64).step_by(61).collect();
    let mut symbolizer = symbolizer();
    assert_eq!(symbolizer.object(object, &offsets).len(), offsets.len());
    assert_eq!(symbolizer.data(object, &offsets).len(), offsets.len());
    symbolizer.trim();
    symbolizer
}

/// A file without a build id, so that what is broken is not recognised by that.
fn write_object(path: &Path, bytes: &[u8]) -> Arc<ObjectFile> {
    fs::write(path, bytes).unwrap();
    binary::object(path)
}

#[test]
fn truncated_files_do_no_harm() {
    let built = Built::c(&["-g", "-Wl,--build-id=none"]);
    let bytes = fs::read(&built.path).unwrap();
    let path = built.dir.path().join("truncated");
    for len in (0..bytes.len()).step_by(bytes.len() / 60) {
        resolve_everything(&write_object(&path, &bytes[..len]), bytes.len());
    }
}

#[test]
fn files_with_flipped_bits_do_no_harm() {
    let built = Built::c(&["-g", "-Wl,--build-id=none"]);
    let bytes = fs::read(&built.path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let path = built.dir.path().join("flipped");
    // Headers first, where a bit matters most, then what is parsed.
    let mut ranges = vec![0..1024, bytes.len() - 2600..bytes.len()];
    for section in file.sections() {
        let parsed =
            section.name().is_ok_and(|name| name.starts_with(".debug") || name == ".symtab");
        if let Some((start, size)) = section.file_range().filter(|_| parsed) {
            ranges.push(start as usize..(start + size) as usize);
        }
    }
    // A fixed sequence, so that a failure can be had again.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for range in ranges {
        for _ in 0..40 {
            let mut flipped = bytes.clone();
            for _ in 0..4 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = range.start + (random as usize >> 8) % range.len();
                flipped[at] ^= 1 << (random & 7);
            }
            resolve_everything(&write_object(&path, &flipped), bytes.len());
        }
    }
}

#[test]
fn files_that_are_no_binaries_are_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let object = write_object(&dir.path().join("text"), b"#!/bin/sh\nexit 0\n");
    let mut symbolizer = symbolizer();
    for _ in 0..3 {
        assert!(symbolizer.object(&object, &[0])[0].is_empty());
        symbolizer.trim();
    }
    let stats = symbolizer.stats();
    assert_eq!((stats.parse_failures, stats.binaries_opened), (1, 0));
    assert_eq!((stats.frames, stats.unresolved), (3, 3));
}

/// Debug information whose inlined calls are nested 300,000 deep. blazesym descends into
/// them by recursion.
#[test]
fn endlessly_nested_calls_do_not_overflow_the_stack() {
    let source = r#"
    .text
    .globl victim
    .type victim, @function
victim:
    .file 1 "nested.s"
    .loc 1 1
    nop
    ret
victim_end:
    .size victim, .-victim
    .section .debug_abbrev,"",@progbits
    .byte 1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0x10, 0x17, 0, 0
    .byte 2, 0x2e, 1, 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0, 0
    .byte 3, 0x1d, 1, 0, 0
    .byte 0
    .section .debug_line,"",@progbits
lines:
    .section .debug_info,"",@progbits
    .long info_end - info
info:
    .value 4
    .long 0
    .byte 8
    .byte 1
    .quad victim
    .quad victim_end - victim
    .long lines
    .byte 2
    .asciz "victim"
    .quad victim
    .quad victim_end - victim
    .fill 300000, 1, 3
    .fill 300002, 1, 0
info_end:
"#;
    let built = Built::new("nested.s", source, &["gcc", "-shared", "-nostdlib"]);
    let (start, _) = built.function("victim");
    let mut symbolizer = symbolizer();
    let lines = symbolizer.object(&built.object(), &[start]).remove(0);
    assert_eq!(describe(&lines), ["victim"], "the symbol is good");
    assert_eq!(symbolizer.stats().parse_failures, 1);
}

/// Debug information that takes a hundred times its size once parsed, or is parsed again
/// and again.
#[test]
fn units_beyond_proportion_are_not_read() {
    let unit =
        |abbreviations: &str| format!(".long 8; .value 4; .long {abbreviations}; .byte 8, 1\n");
    let many = unit("0").repeat(100_000);
    let overlapping: String = (0..200).map(|index| unit(&(index * 5).to_string())).collect();
    let table = ".byte 1, 0x11, 0, 0, 0\n".repeat(1000) + ".byte 0\n";
    let good = unit("0").repeat(200);
    for (units, failures) in [(many, 1), (overlapping, 1), (good, 0)] {
        let source = format!(
            ".text; .globl victim; .type victim, @function\nvictim: nop; ret; .size victim, 2\n\
             .section .debug_abbrev,\"\",@progbits\n{table}\
             .section .debug_info,\"\",@progbits\n{units}"
        );
        let built = Built::new("units.s", &source, &["gcc", "-shared", "-nostdlib"]);
        let (start, _) = built.function("victim");
        let mut symbolizer = symbolizer();
        let lines = symbolizer.object(&built.object(), &[start]).remove(0);
        assert_eq!(describe(&lines), ["victim"]);
        assert_eq!(symbolizer.stats().parse_failures, failures);
    }
}

#[test]
fn debug_information_that_inflates_beyond_the_limit_is_not_read() {
    let zeros = "asm(\".section .debug_info,\\\"\\\",@progbits; .fill 67108864; .text\");\n";
    let source = zeros.to_owned() + binary::INLINED_C;
    let built = Built::new("bomb.c", &source, &["gcc", "-O2", "-gz=zlib"]);
    assert!(fs::metadata(&built.path).unwrap().len() < 1 << 20, "64 MiB in less than one");
    let (start, _) = built.function("outer");
    let dwarf_bytes = 1 << 20;
    let config = SymbolizeConfig { dwarf_bytes, debug_dirs: vec![], ..SymbolizeConfig::default() };
    let mut symbolizer = Symbolizer::new(config);
    let lines = symbolizer.object(&built.object(), &[start]).remove(0);
    assert_eq!(describe(&lines), ["outer"]);
    assert_eq!(symbolizer.stats().parse_failures, 1);
}

#[test]
fn minidebuginfo_that_inflates_beyond_the_limit_is_not_read() {
    let built = Built::c(&["-rdynamic", "-s"]);
    let bomb = built.dir.path().join("bomb");
    fs::File::create(&bomb).unwrap().set_len(64 << 20).unwrap();
    if Command::new("xz").arg(&bomb).status().is_err() {
        eprintln!("skipped: no xz");
        return;
    }
    let section = format!(".gnu_debugdata={}.xz", bomb.display());
    run(Command::new("objcopy").arg("--add-section").arg(section).arg(&built.path));
    let symbolizer = resolve_everything(&built.object(), 0x4000);
    assert_eq!(symbolizer.stats().parse_failures, 1);
}

/// Appends a symbol table whose `count` functions of one byte all have one name of `len`
/// bytes, and makes the file's `.symtab` and `.strtab` that.
fn with_shared_name(bytes: &mut Vec<u8>, count: u64, len: usize) {
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let file = object::File::parse(&**bytes).unwrap();
    let text = file.section_by_name(".text").unwrap();
    let (text, text_size) = (text.address(), text.size());
    let indices = [".strtab", ".symtab"].map(|name| file.section_by_name(name).unwrap().index().0);

    let strings = bytes.len() as u64;
    bytes.push(0);
    bytes.extend(vec![b'A'; len]);
    bytes.push(0);
    let symbols = bytes.len() as u64;
    for index in 0..count {
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend([0x12, 0, 1, 0]);
        bytes.extend((text + index % text_size).to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
    }
    let headers = usize::try_from(word(bytes, 0x28)).unwrap();
    let header_size = usize::from(half(bytes, 0x3a));
    let places = [(strings, symbols - strings), (symbols, 24 * count)];
    for (index, (offset, size)) in indices.into_iter().zip(places) {
        let header = headers + index * header_size;
        bytes[header + 24..header + 32].copy_from_slice(&offset.to_le_bytes());
        bytes[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
    }
}

#[test]
fn long_name_of_many_symbols_takes_its_room_once() {
    let built = Built::c(&["-g0", "-Wl,--build-id=none"]);
    let (start, _) = built.function("main");
    let mut bytes = fs::read(&built.path).unwrap();
    with_shared_name(&mut bytes, 20_000, 50_000);
    let object = write_object(&built.path, &bytes);
    let mut symbolizer = symbolizer();
    let lines = symbolizer.object(&object, &[start]).remove(0);
    assert_eq!(describe(&lines), ["A".repeat(4096)], "cut");
    let stats = symbolizer.stats();
    assert!(stats.cache_bytes < 1 << 20, "{} bytes", stats.cache_bytes);
    assert_eq!(stats.parse_failures, 0);
}

#[test]
fn functions_beyond_the_limit_are_cut_off_and_counted() {
    let built = Built::c(&["-g0", "-Wl,--build-id=none"]);
    let (start, _) = built.function("main");
    let mut bytes = fs::read(&built.path).unwrap();
    with_shared_name(&mut bytes, 5000, 10);
    let object = write_object(&built.path, &bytes);
    for (max_functions, failures) in [(1000, 1), (5000, 0)] {
        let config = SymbolizeConfig { max_functions, debug_dirs: vec![], ..Default::default() };
        let mut symbolizer = Symbolizer::new(config);
        let lines = symbolizer.object(&object, &[start]).remove(0);
        assert_eq!(describe(&lines), ["A".repeat(10)]);
        assert_eq!(symbolizer.stats().parse_failures, failures, "{max_functions}");
    }
}

/// Names stay in the file; what replaces them must not be taken for them.
#[test]
fn names_of_a_file_that_was_overwritten_are_not_used() {
    let built = Built::c(&["-g0", "-Wl,--build-id"]);
    let (start, size) = built.function("main");
    let object = built.object();
    let mut symbolizer = symbolizer();
    assert_eq!(describe(&symbolizer.object(&object, &[start])[0]), ["main"]);
    let len = fs::metadata(&built.path).unwrap().len();
    fs::write(&built.path, vec![b'X'; usize::try_from(len).unwrap()]).unwrap();
    assert!(symbolizer.object(&object, &[start + size - 1])[0].is_empty());
    assert_eq!(describe(&symbolizer.object(&object, &[start])[0]), ["main"], "known already");
}

/// A library can be overwritten in place while it is in use; mapping it would raise
/// SIGBUS.
#[test]
fn file_truncated_while_in_use_does_no_harm() {
    let built = Built::c(&["-g"]);
    let (start, size) = built.function("outer");
    let object = built.object();
    let mut early = symbolizer();
    assert!(!early.object(&object, &[start])[0].is_empty());
    OpenOptions::new().write(true).open(&built.path).unwrap().set_len(0).unwrap();
    let offsets: Vec<u64> = (start..start + size).collect();
    // What was read before is complete.
    assert!(early.object(&object, &offsets).iter().all(|lines| !lines.is_empty()));
    assert!(symbolizer().object(&object, &offsets).iter().all(|lines| lines.is_empty()));
}

#[test]
fn file_overwritten_by_another_build_is_unresolved() {
    let built = Built::c(&["-g", "-Wl,--build-id"]);
    let (start, _) = built.function("outer");
    let object = built.object();
    let other = Built::c(&["-g", "-O0", "-Wl,--build-id"]);
    fs::write(&built.path, fs::read(&other.path).unwrap()).unwrap();
    let mut symbolizer = symbolizer();
    assert!(symbolizer.object(&object, &[start])[0].is_empty());
    assert_eq!(symbolizer.stats().parse_failures, 1);
}
