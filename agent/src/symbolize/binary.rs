//! One ELF file made ready for lookups: its segments, its functions, and its debug
//! information from wherever there is some.

use std::fs::File;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::debug_file;
use super::dwarf::{self, Dwarf, DwarfError, DwarfLine, DwarfOptions};
use super::elf::{Elf, ElfError, Segments};
use super::elf_symbols::ElfSymbols;
use super::line::{Functions, Line};
use super::vdso::VdsoError;
use crate::object::BuildId;

/// Why nothing in a file can be resolved.
#[derive(Debug, Error)]
pub(super) enum BinaryError {
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error(transparent)]
    Vdso(#[from] VdsoError),
    #[error("the file was not open when it was needed")]
    NoFile,
    #[error("the file has been overwritten: its build id is not the mapped file's, {mapped}")]
    Overwritten { mapped: BuildId },
}

/// What a file is opened with.
pub(super) struct BinaryOptions<'a> {
    /// The file's path, for finding its debug file.
    pub(super) path: &'a str,
    /// The identity that the file must have.
    pub(super) build_id: Option<BuildId>,
    pub(super) debug_dirs: &'a [PathBuf],
    pub(super) inlines: bool,
    /// Whether debug information is wanted at all.
    pub(super) source_lines: bool,
    /// The most that debug information may take.
    pub(super) dwarf_limit: u64,
    pub(super) max_functions: usize,
}

impl BinaryOptions<'_> {
    /// Whether the file is the one that was mapped.
    pub(super) fn check_identity(&self, elf: &Elf<'_>) -> Result<(), BinaryError> {
        match self.build_id {
            Some(mapped) if elf.build_id != Some(mapped) => {
                Err(BinaryError::Overwritten { mapped })
            }
            _ => Ok(()),
        }
    }
}

pub(super) struct Binary {
    segments: Segments,
    symbols: ElfSymbols,
    dwarf: Option<Dwarf>,
    /// Whether debug information was dropped to make room, so that lookups now find
    /// less than they could.
    dropped_dwarf: bool,
    /// Parts of the file that could not be used.
    pub(super) failures: u64,
}

impl Binary {
    pub(super) fn open(file: &File, options: &BinaryOptions<'_>) -> Result<Self, BinaryError> {
        let main = Elf::read(file)?;
        options.check_identity(&main)?;
        let path = Path::new(options.path);
        let wants_debug_file = main.section(".symtab").is_none() || !dwarf::has_dwarf(&main);
        let found = wants_debug_file.then(|| debug_file::find(&main, path, options.debug_dirs));
        let found = found.flatten();
        let debug = found.as_ref().and_then(|found| Elf::read(&found.file).ok());

        let mut failures = 0;
        let symbols = ElfSymbols::read(&main, debug.as_ref(), options.max_functions)
            .unwrap_or_else(|error| {
                tracing::debug!(path = options.path, %error, "symbols cannot be read");
                failures += 1;
                ElfSymbols::default()
            });
        if symbols.cut {
            tracing::debug!(path = options.path, "too many functions; the rest has no names");
            failures += 1;
        }
        let dwarf = if options.source_lines {
            let installed = found.as_ref().is_some_and(|found| found.installed);
            let (source, installed) = match &debug {
                Some(debug) if !dwarf::has_dwarf(&main) => (debug, installed),
                _ => (&main, false),
            };
            let wanted = DwarfOptions {
                inlines: options.inlines,
                limit: options.dwarf_limit,
                supplementary: installed.then_some(options.debug_dirs),
            };
            Dwarf::open(source, wanted).unwrap_or_else(|error| {
                let error: &dyn std::error::Error = &error;
                tracing::debug!(path = options.path, error, "debug information is not used");
                failures += 1;
                None
            })
        } else {
            None
        };
        Ok(Self { segments: main.segments, symbols, dwarf, dropped_dwarf: false, failures })
    }

    /// The lines at an offset in the file, innermost first; empty if it is in no function
    /// that is known.
    pub(super) fn lookup(&mut self, offset: u64, functions: &mut Functions) -> Vec<Line> {
        let Some(svma) = self.segments.address_of(offset) else { return Vec::new() };
        let symbol = self.symbols.lookup(svma);
        let found = match self.dwarf.as_ref().map(|dwarf| dwarf.lookup(svma)) {
            None => Vec::new(),
            Some(Ok(lines)) => lines,
            Some(Err(DwarfError::Panic)) => {
                // Its state may be half made; the symbols are still good.
                self.dwarf = None;
                self.failures += 1;
                Vec::new()
            }
            Some(Err(error)) => {
                tracing::trace!(svma, %error, "address without debug information");
                Vec::new()
            }
        };
        let Some((physical, inlined)) = found.split_last() else {
            return symbol
                .map(|name| Line::named(functions.intern(&name, None, None)))
                .into_iter()
                .collect();
        };
        let Some(name) = function_name(symbol.as_deref(), physical) else { return Vec::new() };
        let file_name = physical.file_name.as_deref();
        let physical =
            Line { function: functions.intern(name, None, file_name), line: physical.line };
        // An inlined function without a name is left out: its callers are still right.
        let named = inlined.iter().filter(|line| !line.name.is_empty());
        let inlined = named.map(|line| Line {
            function: functions.intern(line.name.as_bytes(), None, line.file_name.as_deref()),
            line: line.line,
        });
        inlined.chain([physical]).collect()
    }

    /// Makes room; functions can still be resolved, without lines and inlined functions.
    /// Returns whether there was debug information.
    pub(super) fn drop_dwarf(&mut self) -> bool {
        let dropped = self.dwarf.take().is_some();
        self.dropped_dwarf |= dropped;
        dropped
    }

    /// Whether lookups find all that the file knows.
    pub(super) fn is_complete(&self) -> bool {
        !self.dropped_dwarf
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.symbols.bytes() + self.dwarf.as_ref().map_or(0, Dwarf::bytes)
    }
}

/// DWARF knows which of several aliases the source meant; but where it only has a bare
/// `new` or `{closure#0}` (Rust's line tables, C++ functions without linkage), the symbol
/// table has the full name.
fn function_name<'a>(symbol: Option<&'a [u8]>, physical: &'a DwarfLine) -> Option<&'a [u8]> {
    let mangled = |name: &[u8]| name.starts_with(b"_Z") || name.starts_with(b"_R");
    let dwarf = physical.name.as_bytes();
    match symbol {
        Some(symbol) if dwarf.is_empty() || (mangled(symbol) && !mangled(dwarf)) => Some(symbol),
        _ => Some(dwarf).filter(|name| !name.is_empty()),
    }
}
