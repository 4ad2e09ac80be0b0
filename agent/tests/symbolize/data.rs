//! Names of data: where in a file an address of a process is, and what is there.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use everflame_agent::collect::ProcessEvent;
use everflame_agent::object::ObjectFile;
use everflame_agent::process::{Backing, DataPlace, Mapping, ProcessTable};
use everflame_agent::symbolize::{SymbolizeConfig, Symbolizer};
use object::{Object, ObjectSegment, ObjectSymbol};

use crate::binary::{self, Built, run, symbolizer};

/// `inner_lock` is a part of `table_lock`, `_better` and `better` are the same.
const DATA_C: &str = "\
int initialised = 7;
int table_lock[10];
static int hidden_lock[10];
char large[1 << 20];
int _better[4] = { 1 };
extern int better[4] __attribute__((alias(\"_better\")));
struct { char name[16]; int lock; int more; } pool;
static __thread int own;
asm(\".set inner_lock, pool + 20; .size inner_lock, 4; .type inner_lock, @object\");
int *counter(void) {
    static int within[10];
    hidden_lock[0] += own++;
    return &within[hidden_lock[0] % 10];
}
int main(void) { return *counter(); }
";

fn build(options: &[&str]) -> Built {
    let compiler: Vec<&str> = ["gcc", "-O2"].iter().chain(options).copied().collect();
    Built::new("data.c", DATA_C, &compiler)
}

/// Address (svma) and size of the symbol whose name begins like this.
fn symbol(built: &Built, name: &str) -> (u64, u64) {
    let bytes = fs::read(&built.path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let found = file.symbols().chain(file.dynamic_symbols());
    let mut found = found.filter(|symbol| symbol.name().is_ok_and(|it| it.starts_with(name)));
    let found = found.next().unwrap_or_else(|| panic!("no symbol {name}"));
    (found.address(), found.size())
}

fn name_at(object: &Arc<ObjectFile>, svma: u64) -> Option<Arc<str>> {
    symbolizer().data(object, &[svma]).remove(0)
}

#[test]
fn data_has_the_name_of_its_variable_and_the_offset_in_it() {
    for options in [&["-shared", "-fPIC"][..], &["-pie", "-fPIE"], &["-no-pie"]] {
        let built = build(options);
        let check = |variable: &str, offset: u64, expected: Option<&str>| {
            let (start, _) = symbol(&built, variable);
            let name = name_at(&built.object(), start + offset);
            assert_eq!(name.as_deref(), expected, "{options:?}: {variable} {offset}");
        };
        check("initialised", 0, Some("initialised"));
        check("initialised", 3, Some("initialised+0x3"));
        check("table_lock", 0, Some("table_lock"));
        check("table_lock", 0x27, Some("table_lock+0x27"));
        check("hidden_lock", 8, Some("hidden_lock+0x8"));
        check("pool", 16, Some("pool+0x10"));
        check("pool", 21, Some("inner_lock+0x1"));
        check("_better", 4, Some("better+0x4"));
        check("large", 0x8_1234, Some("large+0x81234"));
        check("main", 0, None);
        let (within, _) = symbol(&built, "within");
        let name = name_at(&built.object(), within + 4).unwrap();
        assert!(name.starts_with("within.") && name.ends_with("+0x4"), "{name}");
    }
}

#[test]
fn data_is_named_as_in_the_source() {
    let source = "namespace n { struct S { long a; int lock; }; S s; }\n\
                  int *f() { static int lock; return &lock; }\n";
    let built = Built::new("data.cpp", source, &["g++", "-shared", "-fPIC"]);
    let object = built.object();
    let (s, _) = symbol(&built, "_ZN1n1sE");
    let (lock, _) = symbol(&built, "_ZZ1fvE4lock");
    // The one with an offset first: it must not be taken for the one without.
    let names = symbolizer().data(&object, &[s + 8, s, lock]);
    let names: Vec<_> = names.iter().map(|name| name.as_deref().unwrap()).collect();
    assert_eq!(names, ["n::s+0x8", "n::s", "f()::lock"]);
}

#[test]
fn stripped_files_name_what_they_export() {
    let built = build(&["-shared", "-fPIC"]);
    let (exported, _) = symbol(&built, "table_lock");
    let (hidden, _) = symbol(&built, "hidden_lock");
    run(Command::new("strip").arg(&built.path));
    let names = symbolizer().data(&built.object(), &[hidden, exported + 4]);
    assert_eq!(names, [None, Some("table_lock+0x4".into())]);
    let built = build(&["-no-pie"]);
    let (table, _) = symbol(&built, "table_lock");
    run(Command::new("strip").arg(&built.path));
    assert_eq!(name_at(&built.object(), table), None);
}

#[test]
fn debug_files_name_data() {
    let built = build(&["-g", "-Wl,--build-id"]);
    let (hidden, _) = symbol(&built, "hidden_lock");
    let debug = built.dir.path().join("program.debug");
    run(Command::new("objcopy").arg("--only-keep-debug").arg(&built.path).arg(&debug));
    run(Command::new("strip").arg(&built.path));
    assert_eq!(name_at(&built.object(), hidden), None);
    let link = format!("--add-gnu-debuglink={}", debug.display());
    run(Command::new("objcopy").arg(link).arg(&built.path));
    assert_eq!(name_at(&built.object(), hidden).as_deref(), Some("hidden_lock"));
}

#[test]
fn symbols_that_cannot_be_right_name_nothing() {
    let built = build(&["-Wl,--build-id=none"]);
    let (start, size) = symbol(&built, "table_lock");
    let bytes = fs::read(&built.path).unwrap();
    let entry_of = |address: u64| {
        let entry: Vec<u8> = [address, size].iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = bytes.windows(16).position(|window| window == entry).expect("an entry");
        at - 8
    };
    let entry = entry_of(start);
    // Offset in the entry, what is written there, and whether it has a name still.
    let cases: [(usize, Vec<u8>, bool); 11] = [
        (4, vec![0x11], true),
        (4, vec![0x10], false),
        (4, vec![0x12], false),
        (4, vec![0x16], false),
        (6, vec![0, 0], false),
        (6, vec![0xf1, 0xff], false),
        (0, vec![0xff; 4], false),
        (0, vec![0; 4], false),
        (16, vec![0; 8], false),
        (16, vec![0xff; 8], false),
        (16, (64_u64 << 20).to_le_bytes().to_vec(), false),
    ];
    for (at, value, named) in cases {
        let mut patched = bytes.clone();
        patched[entry + at..entry + at + value.len()].copy_from_slice(&value);
        fs::write(&built.path, &patched).unwrap();
        let name = name_at(&built.object(), start);
        assert_eq!(name.is_some(), named, "{value:x?} at {at}: {name:?}");
    }
}

#[test]
fn symbols_that_all_overlap_are_not_searched() {
    let source = |count: u32| {
        let alias = |n| format!(".set s{n}, table; .type s{n}, @object; .size s{n}, 8\n");
        let aliases: String = (0..count).map(alias).collect();
        format!(".bss; .type table, @object; .size table, 8\ntable: .zero 8\n{aliases}")
    };
    for (count, failures) in [(60_000, 0), (70_000, 1)] {
        let built = Built::new("data.s", &source(count), &["gcc", "-shared", "-nostdlib"]);
        let (table, _) = symbol(&built, "table");
        let mut symbolizer = symbolizer();
        let name = symbolizer.data(&built.object(), &[table]).remove(0);
        assert_eq!(name.is_some(), failures == 0, "{count}");
        assert_eq!(symbolizer.stats().parse_failures, failures, "{count}");
    }
}

#[test]
fn only_answers_are_kept() {
    let variables: String = (0..20_000).map(|n| format!("int variable_{n};\n")).collect();
    let built = Built::new("many.c", &variables, &["gcc", "-shared", "-g0"]);
    let (start, _) = symbol(&built, "variable_7777");
    let object = built.object();
    let mut symbolizer = symbolizer();
    let name = symbolizer.data(&object, &[start]);
    assert_eq!(name[0].as_deref(), Some("variable_7777"));
    let bytes = symbolizer.stats().cache_bytes;
    assert!(bytes < 1000, "{bytes} bytes");
    OpenOptions::new().write(true).open(&built.path).unwrap().set_len(0).unwrap();
    symbolizer.trim();
    assert_eq!(symbolizer.data(&object, &[start]), name, "known already");
    assert_eq!(symbolizer.data(&object, &[start + 4]), [None]);
    assert_eq!(symbolizer.stats().parse_failures, 1);
    symbolizer.trim();
    assert_eq!(symbolizer.data(&object, &[start + 4]), [None]);
    assert_eq!(symbolizer.stats().parse_failures, 1, "not read in each window");
}

#[test]
fn file_that_was_overwritten_names_nothing() {
    let built = build(&["-Wl,--build-id"]);
    let (start, _) = symbol(&built, "table_lock");
    let object = built.object();
    let other = build(&["-DOTHER", "-O0", "-Wl,--build-id"]);
    fs::write(&built.path, fs::read(&other.path).unwrap()).unwrap();
    assert_eq!(name_at(&object, start), None);
    let config = SymbolizeConfig { debug_dirs: vec![], ..SymbolizeConfig::default() };
    assert_eq!(Symbolizer::new(config).data(&object, &[start, start]), [None, None]);
}

/// No process has this id: nothing but what the test says is known of it.
const GONE: u32 = u32::MAX;
const BASE: u64 = 0x7f00_0000_0000;
const PAGE: u64 = 4096;

/// The executable segment, as it is mapped at a load bias.
fn code_of(path: &Path, bias: u64) -> Mapping {
    use object::read::elf::{FileHeader as _, ProgramHeader as _};
    let bytes = fs::read(path).unwrap();
    let header = object::elf::FileHeader64::<object::Endianness>::parse(&*bytes).unwrap();
    let endian = header.endian().unwrap();
    let is_code = |segment: &&object::elf::ProgramHeader64<_>| {
        segment.p_type(endian) == object::elf::PT_LOAD && segment.p_flags(endian) & 1 != 0
    };
    let code = header.program_headers(endian, &*bytes).unwrap().iter().find(is_code).unwrap();
    let start_avma = bias + (code.p_vaddr(endian) & !(PAGE - 1));
    let end = bias + code.p_vaddr(endian) + code.p_memsz(endian);
    Mapping {
        start_avma,
        end_avma: end.next_multiple_of(PAGE),
        file_offset: code.p_offset(endian) & !(PAGE - 1),
        backing: Backing::Object(binary::object(path)),
        path: path.to_str().unwrap().into(),
        mapped_ns: 0,
    }
}

/// Where the last segment ends in memory (svma).
fn end_of(built: &Built) -> u64 {
    let bytes = fs::read(&built.path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    file.segments().map(|segment| segment.address() + segment.size()).max().unwrap()
}

fn process_with(mappings: impl IntoIterator<Item = Mapping>) -> ProcessTable {
    let mut table = ProcessTable::default();
    for mapping in mappings {
        table.apply(1, ProcessEvent::Mmap { pid: GONE, mapping });
    }
    table
}

fn place(table: &mut ProcessTable, avma: u64) -> Option<DataPlace> {
    table.get_mut(GONE).data_place(GONE, avma, 1)
}

fn svma(table: &mut ProcessTable, avma: u64) -> Option<u64> {
    place(table, avma).map(|place| place.svma)
}

#[test]
fn code_tells_where_data_is() {
    let layouts: [(&[&str], u64); 6] = [
        (&["-shared", "-fPIC"], BASE),
        (&["-shared", "-fPIC", "-Wl,-z,noseparate-code"], BASE),
        (&["-shared", "-fPIC", "-fuse-ld=gold"], BASE),
        (&["-shared", "-fPIC", "-Wl,-z,max-page-size=0x200000"], BASE),
        (&["-pie", "-fPIE"], BASE),
        (&["-no-pie"], 0),
    ];
    for (options, bias) in layouts {
        let built = build(options);
        let mut table = process_with([code_of(&built.path, bias)]);
        for (variable, offset) in
            [("initialised", 0), ("table_lock", 4), ("large", 0), ("large", (1 << 20) - 1)]
        {
            let expected = symbol(&built, variable).0 + offset;
            let found = svma(&mut table, bias + expected);
            assert_eq!(found, Some(expected), "{options:?}: {variable}");
        }
        let end = end_of(&built);
        assert_eq!(svma(&mut table, bias + end - 1), Some(end - 1), "{options:?}");
        for avma in [end, end + PAGE, symbol(&built, "main").0, 0, u64::MAX - bias] {
            assert_eq!(svma(&mut table, bias + avma), None, "{options:?}: {avma:#x}");
        }
    }
}

#[test]
fn data_is_of_the_nearest_file_below() {
    let [below, above] = [(); 2].map(|()| build(&["-shared", "-fPIC"]));
    let end = end_of(&below);
    let (lock, _) = symbol(&below, "table_lock");
    let next = BASE + end.next_multiple_of(PAGE);
    let mappings = [code_of(&below.path, BASE), code_of(&above.path, next)];
    let mut table = process_with(mappings.clone());
    for (bias, built) in [(BASE, &below), (next, &above)] {
        let found = place(&mut table, bias + lock).unwrap();
        assert_eq!((found.svma, found.object.path.as_str()), (lock, built.path.to_str().unwrap()));
    }
    // Generated code may lie in between, other files not.
    let mut between = mappings[0].clone();
    (between.start_avma, between.end_avma) = (BASE + lock - PAGE, BASE + lock);
    let mut table = process_with([mappings[0].clone(), between.clone()]);
    assert_eq!(svma(&mut table, BASE + lock), None);
    between.backing = Backing::Anonymous;
    let mut table = process_with([mappings[0].clone(), between]);
    assert_eq!(svma(&mut table, BASE + lock), Some(lock));
}

#[test]
fn what_is_known_is_forgotten_with_the_program_and_with_its_memory() {
    let built = build(&["-shared", "-fPIC"]);
    let (lock, _) = symbol(&built, "table_lock");
    let mut table = process_with([code_of(&built.path, BASE)]);
    assert_eq!(svma(&mut table, BASE + lock), Some(lock));
    assert_eq!(svma(&mut table, 2 * BASE + lock), None);
    let mapping = code_of(&built.path, 2 * BASE);
    table.apply(2, ProcessEvent::Mmap { pid: GONE, mapping });
    assert_eq!(svma(&mut table, 2 * BASE + lock), Some(lock));
    let exec = ProcessEvent::Comm { pid: GONE, tid: GONE, name: "other".to_owned(), exec: true };
    table.apply(3, exec);
    assert_eq!(svma(&mut table, BASE + lock), None);
}

#[test]
fn headers_with_flipped_bits_do_no_harm() {
    let built = build(&["-shared", "-fPIC", "-Wl,--build-id=none"]);
    let bytes = fs::read(&built.path).unwrap();
    let mapping = code_of(&built.path, BASE);
    let (lock, _) = symbol(&built, "table_lock");
    let mut found = 0;
    for bit in (0..(64 + 11 * 56) * 8).step_by(5) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&built.path, &flipped).unwrap();
        let backing = Backing::Object(binary::object(&built.path));
        let mut table = process_with([Mapping { backing, ..mapping.clone() }]);
        if let Some(place) = place(&mut table, BASE + lock) {
            found += 1;
            symbolizer().data(&place.object, &[place.svma, place.svma ^ 1 << 63]);
        }
    }
    assert!(found > 500, "most bits matter little: {found}");
}
