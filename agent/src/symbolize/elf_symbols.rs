//! The functions that an ELF file names: `.symtab`, the minidebuginfo that Fedora and
//! its relatives put into stripped binaries (`.gnu_debugdata`, an xz-compressed ELF file
//! with a `.symtab` of what is not in `.dynsym`), and `.dynsym`, all merged.
//!
//! Only where functions lie is kept in memory. Their names are many times as large (20 MB
//! in rustc's compiler, and a hostile file can give 20,000 symbols one long name), and few
//! are asked for, so they stay in the file.

use std::fs::File;
use std::io::{self, Read, Write};

use object::Endianness;
use object::elf::{self, Sym64};
use object::pod::from_bytes;
use rustix::fs::MemfdFlags;

use super::elf::{CodeSections, Elf, ElfError, Section};
use super::name_file::{NameFile, NameReader};
use super::symbol_table::{End, NameOffset, RawSymbol, SymbolTable, SymbolTableBuilder};

/// How far a symbol table is read; it is not kept. Chromium's takes 30 MiB.
const MAX_TABLE_BYTES: u64 = 256 << 20;
/// Fedora's largest are about 2 MiB, compressed, with names.
const MAX_MINIDEBUGINFO_BYTES: u64 = 24 << 20;
/// What decoding xz may use; Fedora uses less than 10 MiB.
const XZ_MEMORY: u64 = 20 << 20;

/// All functions of a file.
#[derive(Default)]
pub(super) struct ElfSymbols {
    table: SymbolTable,
    /// One behind the other, as if they were one file.
    names: Vec<NameFile>,
    /// Whether there were more than are kept.
    pub(super) cut: bool,
}

impl ElfSymbols {
    /// At most `limit` functions. `debug` is the separate debug file, with a fuller
    /// `.symtab`.
    pub(super) fn read(
        main: &Elf<'_>,
        debug: Option<&Elf<'_>>,
        limit: usize,
    ) -> Result<Self, ElfError> {
        let mut reader = Reader {
            table: SymbolTableBuilder::default(),
            names: Vec::new(),
            code: main.code(),
            limit,
            cut: false,
        };
        let mut complete = false;
        for elf in debug.into_iter().chain([main]) {
            if !complete && let Some(section) = elf.section(".symtab") {
                // The debug file's own sections are as the main file's, less their contents.
                reader.add(elf, section, Completeness::AllFunctions)?;
                complete = true;
            }
        }
        if !complete && let Some(section) = main.section(".gnu_debugdata") {
            let image = decompress_minidebuginfo(main, section)?;
            let mini = Elf::read(&image)?;
            if let Some(section) = mini.section(".symtab") {
                reader.add(&mini, section, Completeness::SomeFunctions)?;
            }
        }
        if !complete && let Some(section) = main.section(".dynsym") {
            reader.add(main, section, Completeness::SomeFunctions)?;
        }
        let Reader { table, names, cut, .. } = reader;
        Ok(Self { table: table.finish(), names, cut })
    }

    /// The name of the function that `address` lies in, as bytes of unknown encoding.
    pub(super) fn lookup(&self, address: u64) -> Option<Vec<u8>> {
        let mut offset = self.table.locate(address)?.offset();
        for names in &self.names {
            match offset.checked_sub(names.len()) {
                Some(behind) => offset = behind,
                None => return names.get(offset).filter(|name| !name.is_empty()),
            }
        }
        None
    }

    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.names.iter().map(NameFile::bytes).sum::<usize>()
    }
}

/// The names of a symbol table, if that is not too large to be read.
pub(super) fn names_of(elf: &Elf<'_>, section: &Section) -> Result<NameFile, ElfError> {
    let strings = elf
        .sections
        .get(section.link as usize)
        .ok_or(ElfError::Malformed { what: "symbol table without strings" })?;
    if section.size > MAX_TABLE_BYTES {
        let what = format!("section `{}`", section.name);
        return Err(ElfError::TooLarge { what, bytes: section.size, limit: MAX_TABLE_BYTES });
    }
    NameFile::new(elf.file(), strings).map_err(|source| ElfError::Read {
        offset: section.offset,
        len: section.size,
        source,
    })
}

/// The entries of a symbol table, from one end to the other.
pub(super) fn entries(
    elf: &Elf<'_>,
    section: &Section,
) -> impl Iterator<Item = Result<Sym64<Endianness>, ElfError>> {
    let (offset, len) = (section.offset, section.size);
    let mut symbols = io::BufReader::with_capacity(64 << 10, elf.reader(section));
    let mut entry = [0; size_of::<Sym64<Endianness>>()];
    (0..len / entry.len() as u64).map(move |_| {
        let failed = |source| ElfError::Read { offset, len, source };
        symbols.read_exact(&mut entry).map_err(failed)?;
        let (symbol, _) = from_bytes::<Sym64<Endianness>>(&entry)
            .map_err(|()| ElfError::Malformed { what: "symbol table" })?;
        Ok(*symbol)
    })
}

/// The less, the more likely it is the name that people know.
pub(super) fn binding_rank(symbol: &Sym64<Endianness>) -> u8 {
    match symbol.st_info >> 4 {
        elf::STB_GLOBAL => 0,
        elf::STB_WEAK => 4,
        _ => 8,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Completeness {
    /// What lies between two symbols belongs to the first, if that has no size.
    AllFunctions,
    /// What lies between two symbols may be anything.
    SomeFunctions,
}

struct Reader {
    table: SymbolTableBuilder,
    names: Vec<NameFile>,
    code: CodeSections,
    limit: usize,
    cut: bool,
}

impl Reader {
    fn add(
        &mut self,
        elf: &Elf<'_>,
        section: &Section,
        completeness: Completeness,
    ) -> Result<(), ElfError> {
        let names = names_of(elf, section)?;
        let first_name: u64 = self.names.iter().map(NameFile::len).sum();
        let mut name_reader = NameReader::new(&names);
        for symbol in entries(elf, section) {
            let symbol = symbol?;
            let Some(symbol) = Listed::new(&symbol) else { continue };
            // Data symbols are of no use, and marks such as `_end` lie outside the code.
            let Some(limit) = self.code.end_around(symbol.start) else { continue };
            let end = match symbol.size {
                0 if completeness == Completeness::SomeFunctions => continue,
                0 => End::NextSymbolOr(limit),
                size => End::At(symbol.start.saturating_add(size).min(limit)),
            };
            let Some(begin) = name_reader.begin(symbol.name) else { continue };
            // `$x` and `$d` mark code and data for arm64's debuggers, `.L` labels escape
            // from assemblers now and then.
            if symbol.size == 0 && (begin.starts_with(b"$") || begin.starts_with(b".L")) {
                continue;
            }
            let rank = symbol.rank + 16 * u8::from(symbol.size == 0) + underscores(&begin);
            let name = NameOffset::elsewhere(first_name.saturating_add(symbol.name));
            // A table that is full keeps what it has.
            let Some(name) = name.filter(|_| self.table.len() < self.limit) else {
                self.cut = true;
                break;
            };
            self.table.push(RawSymbol { start: symbol.start, end, rank, name });
        }
        self.names.push(names);
        Ok(())
    }
}

/// `memcpy` rather than `__memcpy`.
pub(super) fn underscores(name: &[u8]) -> u8 {
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
    name: u64,
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
        Some(Self {
            start: symbol.st_value.get(little),
            size: symbol.st_size.get(little),
            name: u64::from(symbol.st_name.get(little)),
            rank: binding_rank(symbol),
        })
    }
}

/// Into memory that is given back with the symbols, as their names stay there.
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
