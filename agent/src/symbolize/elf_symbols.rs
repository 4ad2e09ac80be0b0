//! The functions that an ELF file names: `.symtab`, the minidebuginfo that Fedora and
//! its relatives put into stripped binaries (`.gnu_debugdata`, an xz-compressed ELF file
//! with a `.symtab` of what is not in `.dynsym`), and `.dynsym`, all merged.

use std::fs::File;
use std::io::{self, Read, Write};

use object::Endianness;
use object::elf::{self, Sym64};
use object::pod::slice_from_all_bytes;
use rustix::fs::MemfdFlags;

use super::elf::{Elf, ElfError, Section};
use super::symbol_table::{End, RawSymbol, SymbolTable, SymbolTableBuilder};

/// A symbol table or its strings; Chromium's take 150 MiB.
const MAX_TABLE_BYTES: u64 = 256 << 20;
/// Fedora's largest are about 2 MiB.
const MAX_MINIDEBUGINFO_BYTES: u64 = 32 << 20;
/// What decoding xz may use; `xz -9` needs 65 MiB, Fedora uses less than 10.
const XZ_MEMORY: u64 = 80 << 20;

/// All functions of a file. `debug` is its separate debug file, with a fuller `.symtab`.
pub(super) fn read(main: &Elf<'_>, debug: Option<&Elf<'_>>) -> Result<SymbolTable, ElfError> {
    let mut table = SymbolTableBuilder::default();
    let mut complete = false;
    for elf in debug.into_iter().chain([main]) {
        if !complete && let Some(section) = elf.section(".symtab") {
            // The debug file's own sections are as the main file's, less their contents.
            add(&mut table, elf, section, main, Completeness::AllFunctions)?;
            complete = true;
        }
    }
    if !complete && let Some(section) = main.section(".gnu_debugdata") {
        let image = decompress_minidebuginfo(main, section)?;
        let mini = Elf::read(&image)?;
        if let Some(section) = mini.section(".symtab") {
            add(&mut table, &mini, section, main, Completeness::SomeFunctions)?;
        }
    }
    if !complete && let Some(section) = main.section(".dynsym") {
        add(&mut table, main, section, main, Completeness::SomeFunctions)?;
    }
    Ok(table.finish())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Completeness {
    /// What lies between two symbols belongs to the first, if that has no size.
    AllFunctions,
    /// What lies between two symbols may be anything.
    SomeFunctions,
}

fn add(
    table: &mut SymbolTableBuilder,
    elf: &Elf<'_>,
    section: &Section,
    main: &Elf<'_>,
    completeness: Completeness,
) -> Result<(), ElfError> {
    let strings = elf
        .sections
        .get(section.link as usize)
        .ok_or(ElfError::Malformed { what: "symbol table without strings" })?;
    let strings = elf.raw(strings, MAX_TABLE_BYTES)?;
    let symbols = elf.raw(section, MAX_TABLE_BYTES)?;
    let symbols = slice_from_all_bytes::<Sym64<Endianness>>(&symbols)
        .map_err(|()| ElfError::Malformed { what: "symbol table" })?;
    for symbol in symbols {
        let Some(symbol) = Listed::new(symbol) else { continue };
        // Data symbols are of no use, and marks such as `_end` lie outside the code.
        let Some(limit) = main.code_end(symbol.start) else { continue };
        let end = match symbol.size {
            0 if completeness == Completeness::SomeFunctions => continue,
            0 => End::NextSymbolOr(limit),
            size => End::At(symbol.start.saturating_add(size).min(limit)),
        };
        let name = strings.get(symbol.name..).and_then(|rest| rest.split(|byte| *byte == 0).next());
        let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
        // `$x` and `$d` mark code and data for arm64's debuggers, `.L` labels escape
        // from assemblers now and then.
        if symbol.size == 0 && (name.starts_with(b"$") || name.starts_with(b".L")) {
            continue;
        }
        let rank = symbol.rank + 16 * u8::from(symbol.size == 0) + underscores(name);
        // A table that is full keeps what it has.
        let Some(name) = table.name(&[name]) else { break };
        table.push(RawSymbol { start: symbol.start, end, rank, name });
    }
    Ok(())
}

/// `memcpy` rather than `__memcpy`.
fn underscores(name: &[u8]) -> u8 {
    let count = if name.starts_with(b"_Z") || name.starts_with(b"_R") {
        0
    } else {
        name.iter().take_while(|byte| **byte == b'_').count()
    };
    u8::try_from(count.min(3)).unwrap_or(3)
}

struct Listed {
    start: u64,
    size: u64,
    name: usize,
    rank: u8,
}

impl Listed {
    fn new(symbol: &Sym64<Endianness>) -> Option<Self> {
        let little = Endianness::Little;
        let kind = symbol.st_info & 0xf;
        let function = matches!(kind, elf::STT_FUNC | elf::STT_GNU_IFUNC | elf::STT_NOTYPE);
        if !function || symbol.st_shndx.get(little) == elf::SHN_UNDEF {
            return None;
        }
        let binding = match symbol.st_info >> 4 {
            elf::STB_GLOBAL => 0,
            elf::STB_WEAK => 4,
            _ => 8,
        };
        Some(Self {
            start: symbol.st_value.get(little),
            size: symbol.st_size.get(little),
            name: symbol.st_name.get(little) as usize,
            rank: binding,
        })
    }
}

/// Into memory that is given back as soon as the symbols have been read.
fn decompress_minidebuginfo(elf: &Elf<'_>, section: &Section) -> Result<File, ElfError> {
    let failed = |source| ElfError::Decompress { section: section.name.clone(), source };
    let stream = xz2::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(io::Error::from);
    let decoder = xz2::read::XzDecoder::new_stream(elf.reader(section), stream.map_err(failed)?);
    let image = rustix::fs::memfd_create("everflame-minidebuginfo", MemfdFlags::CLOEXEC);
    let mut image = File::from(image.map_err(|error| failed(error.into()))?);
    copy_bounded(decoder, &mut image, MAX_MINIDEBUGINFO_BYTES, &section.name)?;
    Ok(image)
}

/// Copies all of `from`, or fails before more than `limit` bytes have been written.
pub(super) fn copy_bounded(
    from: impl Read,
    to: &mut impl Write,
    limit: u64,
    section: &str,
) -> Result<u64, ElfError> {
    let copied = io::copy(&mut from.take(limit.saturating_add(1)), to)
        .map_err(|source| ElfError::Decompress { section: section.to_owned(), source })?;
    if copied > limit {
        let what = format!("section `{section}`");
        return Err(ElfError::TooLarge { what, bytes: copied, limit });
    }
    Ok(copied)
}
