//! Symbols, lines and inlined functions of intact ELF files.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use everflame_agent::object::{ObjectFile, ObjectKind};
use object::{Object, ObjectSymbol};

use crate::binary::{self, Built, describe, describe_all, resolve};

#[test]
fn inlined_calls_have_their_names_and_lines() {
    for pie in ["-pie", "-no-pie"] {
        for dwarf in ["-gdwarf-4", "-gdwarf-5"] {
            let built = Built::c(&[pie, "-fpie", dwarf]);
            let frames = describe_all(&built, "outer");
            let expected = ["inner program.c:4", "middle program.c:7", "outer program.c:10"];
            assert!(frames.iter().any(|lines| lines == &expected), "{pie} {dwarf}: {frames:?}");
        }
    }
}

#[test]
fn lines_agree_with_addr2line() {
    let built = Built::c(&["-g"]);
    for name in ["outer", "hidden", "main"] {
        let (start, size) = built.function(name);
        let bytes = fs::read(&built.path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let svma = file.symbols().find(|it| it.name() == Ok(name)).unwrap().address();
        for within in 0..size {
            let output = Command::new("addr2line")
                .args(["-f", "-i", "-s", "-e"])
                .arg(&built.path)
                .arg(format!("{:x}", svma + within))
                .output()
                .unwrap();
            let output = String::from_utf8(output.stdout).unwrap();
            let lines: Vec<&str> = output.lines().collect();
            let expected: Vec<String> = lines
                .chunks(2)
                .map(|pair| format!("{} {}", pair[0], pair[1].split(' ').next().unwrap()))
                .collect();
            let found = describe(&resolve(&built.object(), start + within));
            assert_eq!(found, expected, "{name}+{within:#x}");
        }
    }
}

#[test]
fn compressed_debug_sections_are_read() {
    for compression in ["-gz=zlib", "-gz=zlib-gnu", "-gz=zstd"] {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("program.c");
        fs::write(&source, binary::INLINED_C).unwrap();
        let path = dir.path().join("program");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-g", compression, "-o"]).arg(&path).arg(&source);
        if !gcc.output().unwrap().status.success() {
            // Not every binutils is built with zstd.
            eprintln!("skipped: gcc cannot do {compression}");
            continue;
        }
        let built = Built { dir, path };
        let frames = describe_all(&built, "outer");
        let expected = ["inner program.c:4", "middle program.c:7", "outer program.c:10"];
        assert!(frames.iter().any(|lines| lines == &expected), "{compression}: {frames:?}");
    }
}

#[test]
fn every_function_resolves_to_the_name_in_nm() {
    for options in [["-g", "-pie"], ["-g0", "-pie"], ["-g0", "-no-pie"], ["-g0", "-static"]] {
        let built = Built::c(&options);
        let bytes = fs::read(&built.path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let functions: Vec<_> = file
            .symbols()
            .filter(|it| it.kind() == object::SymbolKind::Text && it.is_definition())
            .filter(|it| it.size() > 0)
            .collect();
        let aliases = |address: u64| {
            let same = file.symbols().filter(move |it| it.address() == address);
            same.map(|it| it.name().unwrap()).collect::<Vec<_>>()
        };
        let object = built.object();
        let mut symbolizer = binary::symbolizer();
        for function in &functions {
            let offset = binary::file_offset(&file, function.address());
            let lines = symbolizer.object(&object, &[offset]).remove(0);
            let name = lines.last().map(|line| line.function.system_name.to_string());
            let aliases = aliases(function.address());
            let found = name.as_deref().is_some_and(|name| aliases.contains(&name));
            assert!(found, "{options:?} {:#x}: {name:?}, not {aliases:?}", function.address());
        }
    }
}

#[test]
fn address_outside_of_functions_is_unresolved() {
    let built = Built::c(&["-g0", "-static"]);
    let object = built.object();
    let size = fs::metadata(&built.path).unwrap().len();
    // The ELF header is loaded, but is no code.
    for offset in [0, 0x20, size, size + 0x1000, u64::MAX] {
        assert!(resolve(&object, offset).is_empty(), "{offset:#x}");
    }
    let padded = "asm(\".globl padded; .type padded,@function; padded: nop; .size padded,1; \
                  .fill 64,1,0x90\"); int main(void) { return 0; }";
    let built = Built::new("padded.c", padded, &["gcc", "-O2"]);
    let (start, _) = built.function("padded");
    assert_eq!(describe(&resolve(&built.object(), start)), ["padded"]);
    assert!(resolve(&built.object(), start + 1).is_empty());
}

#[test]
fn cpp_names_are_demangled() {
    let source = "\
namespace shop {
template <typename T> struct Cart {
    __attribute__((noinline)) T total(T price, int count) { asm volatile(\"\"); return price * count; }
};
}
int main(int argc, char **) { return shop::Cart<int>().total(argc, 3); }
";
    for debug in ["-g", "-g0"] {
        let built = Built::new("cart.cpp", source, &["g++", "-O1", debug]);
        let mangled = "_ZN4shop4CartIiE5totalEii";
        let (start, _) = built.function(mangled);
        let lines = resolve(&built.object(), start);
        let function = &lines.last().unwrap().function;
        assert_eq!(&*function.name, "shop::Cart<int>::total(int, int)", "{debug}");
        assert_eq!(&*function.system_name, mangled, "{debug}");
    }
}

#[test]
fn rust_names_are_demangled() {
    let source = "\
pub mod shop {
    #[inline(never)]
    pub fn total<T: std::ops::Mul<Output = T>>(price: T, count: T) -> T { price * count }
}
fn main() {
    std::process::exit(shop::total(std::env::args().count() as i32, 3));
}
";
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    for mangling in [None, Some("-Csymbol-mangling-version=v0")] {
        for debug in ["-Cdebuginfo=0", "-Cdebuginfo=1", "-Cdebuginfo=2"] {
            let mut compiler = vec![&*rustc, "-Copt-level=2", "--crate-name=program", debug];
            compiler.extend(mangling);
            let built = Built::new("program.rs", source, &compiler);
            let bytes = fs::read(&built.path).unwrap();
            let file = object::File::parse(&*bytes).unwrap();
            let symbol = file
                .symbols()
                .find(|it| it.name().is_ok_and(|it| it.contains("4shop5total")))
                .unwrap();
            let mangled = symbol.name().unwrap();
            let name = if mangled.starts_with("_R") {
                "program::shop::total::<i32>"
            } else {
                "program::shop::total"
            };
            let lines = resolve(&built.object(), binary::file_offset(&file, symbol.address()));
            let function = &lines.last().unwrap().function;
            assert_eq!(&*function.name, name, "{mangling:?} {debug}");
            assert_eq!(&*function.system_name, mangled, "{mangling:?} {debug}");
        }
    }
}

#[test]
fn go_names_stay_as_they_are() {
    let source = "\
package main

import \"os\"

type cart struct{ count int }

//go:noinline
func (c *cart) total(price int) int { return c.count * price }

func main() { os.Exit((&cart{3}).total(len(os.Args))) }
";
    if Command::new("go").arg("version").output().is_err() {
        eprintln!("skipped: no go");
        return;
    }
    let built = Built::go(source);
    let (start, _) = built.function("main.(*cart).total");
    let lines = describe(&resolve(&built.object(), start));
    assert_eq!(lines, ["main.(*cart).total program.go:8"]);
}

#[test]
fn deleted_binary_is_read_through_its_open_file() {
    let built = Built::c(&["-g"]);
    let (start, _) = built.function("main");
    let object = built.object();
    fs::remove_file(&built.path).unwrap();
    assert_eq!(describe(&resolve(&object, start)).last().unwrap(), "main program.c:16");
}

#[test]
fn file_that_was_not_opened_is_unresolved() {
    let built = Built::c(&["-g"]);
    let (start, _) = built.function("main");
    let object = built.object();
    let unopened = Arc::new(ObjectFile {
        path: object.path.clone(),
        build_id: object.build_id,
        kind: ObjectKind::Elf { file: None },
    });
    let mut symbolizer = binary::symbolizer();
    assert!(symbolizer.object(&unopened, &[start])[0].is_empty());
    // Another file of the same build id does as well.
    assert!(!symbolizer.object(&object, &[start])[0].is_empty());
    assert!(!symbolizer.object(&unopened, &[start + 1])[0].is_empty());
}

#[test]
fn vdso_functions_are_named() {
    let image = vdso_image();
    let file = object::File::parse(&*image).unwrap();
    let symbol = file
        .dynamic_symbols()
        .find(|it| it.name().is_ok_and(|name| name.ends_with("clock_gettime")))
        .unwrap();
    let object =
        Arc::new(ObjectFile { path: "[vdso]".to_owned(), build_id: None, kind: ObjectKind::Vdso });
    let lines = resolve(&object, binary::file_offset(&file, symbol.address()) + 1);
    let name = &lines.first().expect("the vDSO has symbols").function.name;
    assert!(name.ends_with("clock_gettime"), "{name}");
}

fn vdso_image() -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let range = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (start, end) = range.split(' ').next().unwrap().split_once('-').unwrap();
    let number = |hex| u64::from_str_radix(hex, 16).unwrap();
    let mut image = vec![0; (number(end) - number(start)) as usize];
    fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut image, number(start)).unwrap();
    image
}

#[test]
fn memory_that_is_no_file_is_unresolved() {
    let object = Arc::new(ObjectFile {
        path: "[vsyscall]".to_owned(),
        build_id: None,
        kind: ObjectKind::Opaque,
    });
    assert!(resolve(&object, 0).is_empty());
}
