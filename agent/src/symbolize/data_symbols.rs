//! The data that an ELF file names, read when somebody asks for it.
//!
//! Few addresses of data are ever asked for: those of locks that threads wait for. A table of
//! all data, as there is one of all functions, would take a fifth to a half as much memory
//! again (node has 153,000 functions and 28,000 pieces of data, libLLVM 186,000 and 104,000). So
//! symbol tables are read from one end to the other for all addresses at once, and nothing but
//! the answers is kept.

use std::fs::File;
use std::path::Path;

use object::Endianness;
use object::elf::{self, Sym64};

use super::binary::{BinaryError, BinaryOptions};
use super::debug_file;
use super::elf::{Elf, ElfError, Section, Segments};
use super::elf_symbols::{binding_rank, entries, names_of, underscores};
use super::name_file::NameReader;

/// Addresses that are looked for at once; the rest has to wait.
pub(super) const MAX_ADDRESSES: usize = 256;
/// Pieces of data that lie around an address are aliases and parts of each other; a table
/// with more is made to take long.
const MAX_MATCHES: usize = 1 << 16;

/// What is at an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DataSymbol {
    /// Bytes of unknown encoding.
    pub(super) name: Vec<u8>,
    /// How far into it the address is.
    pub(super) offset: u64,
}

/// What is at each of these addresses in the file (svma), in order.
pub(super) fn find(
    file: &File,
    options: &BinaryOptions<'_>,
    svmas: &[u64],
) -> Result<Vec<Option<DataSymbol>>, BinaryError> {
    let main = Elf::read(file)?;
    options.check_identity(&main)?;
    let mut search = Search::new(&main.segments, svmas);
    let path = Path::new(options.path);
    let stripped = main.section(".symtab").is_none();
    let debug = stripped.then(|| debug_file::find(&main, path, options.debug_dirs)).flatten();
    let debug = debug.as_ref().and_then(|found| Elf::read(&found.file).ok());
    let mut failure = None;
    for (elf, name) in
        debug.iter().map(|debug| (debug, ".symtab")).chain([(&main, ".symtab"), (&main, ".dynsym")])
    {
        if let Some(section) = elf.section(name).filter(|_| !search.is_complete())
            && let Err(error) = search.read(elf, section)
        {
            failure = Some(error);
        }
    }
    match failure {
        Some(error) if !search.is_complete() => Err(error.into()),
        _ => Ok(svmas.iter().map(|svma| search.take(*svma)).collect()),
    }
}

/// A symbol around an address. Of several the least is the right one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Match {
    /// The innermost, then the one that most people know.
    size: u64,
    rank: u8,
    start: u64,
    name: u64,
}

struct Search<'a> {
    segments: &'a Segments,
    /// Sorted by address.
    wanted: Vec<(u64, Option<DataSymbol>)>,
}

impl<'a> Search<'a> {
    fn new(segments: &'a Segments, svmas: &[u64]) -> Self {
        let mut wanted: Vec<u64> = svmas.iter().copied().take(MAX_ADDRESSES).collect();
        wanted.sort_unstable();
        wanted.dedup();
        Self { segments, wanted: wanted.into_iter().map(|svma| (svma, None)).collect() }
    }

    fn is_complete(&self) -> bool {
        self.wanted.iter().all(|(_, found)| found.is_some())
    }

    fn take(&mut self, svma: u64) -> Option<DataSymbol> {
        let at = self.wanted.binary_search_by_key(&svma, |(svma, _)| *svma).ok()?;
        let found = self.wanted.get(at)?.1.as_ref()?;
        Some(DataSymbol { name: found.name.clone(), offset: found.offset })
    }

    fn read(&mut self, elf: &Elf<'_>, section: &Section) -> Result<(), ElfError> {
        let names = names_of(elf, section)?;
        let mut name_reader = NameReader::new(&names);
        let mut best: Vec<Option<Match>> = vec![None; self.wanted.len()];
        let mut matches = 0;
        for symbol in entries(elf, section) {
            let symbol = symbol?;
            let Some(listed) = Listed::new(&symbol) else { continue };
            let first = self.wanted.partition_point(|(svma, _)| *svma < listed.start);
            let end = self.wanted.partition_point(|(svma, _)| *svma < listed.end);
            if first >= end || !self.segments.contain(listed.start, listed.end) {
                continue;
            }
            matches += end - first;
            if matches > MAX_MATCHES {
                return Err(ElfError::Malformed { what: "symbols, which all overlap" });
            }
            let Some(begin) = name_reader.begin(listed.name) else { continue };
            let found = Match {
                size: listed.end - listed.start,
                rank: listed.binding + underscores(&begin),
                start: listed.start,
                name: listed.name,
            };
            for best in &mut best[first..end] {
                *best = Some(best.map_or(found, |best| best.min(found)));
            }
        }
        for ((svma, symbol), best) in self.wanted.iter_mut().zip(best) {
            if let Some(best) = best.filter(|_| symbol.is_none()) {
                let name = names.get(best.name).filter(|name| !name.is_empty());
                *symbol = name.map(|name| DataSymbol { name, offset: *svma - best.start });
            }
        }
        Ok(())
    }
}

/// A symbol of data that has a size.
struct Listed {
    start: u64,
    end: u64,
    binding: u8,
    name: u64,
}

impl Listed {
    fn new(symbol: &Sym64<Endianness>) -> Option<Self> {
        let little = Endianness::Little;
        let section = symbol.st_shndx.get(little);
        // The values of others are no addresses: of thread-local data they are offsets in a
        // thread's block.
        if symbol.st_info & 0xf != elf::STT_OBJECT
            || [elf::SHN_UNDEF, elf::SHN_ABS, elf::SHN_COMMON].contains(&section)
        {
            return None;
        }
        let start = symbol.st_value.get(little);
        let size = symbol.st_size.get(little);
        let end = start.checked_add(size).filter(|_| size > 0)?;
        Some(Self {
            start,
            end,
            binding: binding_rank(symbol),
            name: u64::from(symbol.st_name.get(little)),
        })
    }
}
