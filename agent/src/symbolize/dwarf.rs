//! Inlined functions and source lines, by blazesym from DWARF.
//!
//! blazesym maps the file that it reads, believes the sizes in it, and decompresses
//! without bound. So it is not given the file but an image: an ELF file in sealed memory
//! of our own with just the sections that it needs, decompressed, within a size limit.
//! The image can neither change nor shrink, and lookups in it are fenced against panics.
//!
//! blazesym tells lines only where it knows a function. Compilers leave functions out
//! (`-gline-tables-only`, assembly), so the image's own symbol table has one nameless
//! symbol over all addresses, and names for it come from the file's symbols.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use blazesym::helper::ElfResolver;
use blazesym::symbolize::{CodeInfo, FindSymOpts, ResolvedSym, Symbolize};
use rustix::fs::{MemfdFlags, SealFlags};
use thiserror::Error;

use super::dwarf_nesting;
use super::elf::{Elf, ElfError, Section};
use super::image::write_image;

/// Why a file's debug information cannot be used.
#[derive(Debug, Error)]
pub(super) enum DwarfError {
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error("cannot store debug information in memory")]
    Memory(#[from] io::Error),
    #[error("inlined functions are nested more than {limit} deep")]
    Nesting { limit: isize },
    #[error("so many {what} for so little debug information are no compiler's work")]
    Disproportionate { what: &'static str },
    #[error("malformed debug information")]
    Gimli(#[from] gimli::Error),
    #[error("malformed debug information")]
    Blazesym(#[from] blazesym::Error),
    #[error("reading debug information panicked")]
    Panic,
}

/// A function at an address, as DWARF has it.
pub(super) struct DwarfLine {
    /// The name, mangled if there is such a one; empty where DWARF has none.
    pub(super) name: String,
    pub(super) file_name: Option<String>,
    pub(super) line: Option<u32>,
}

/// The debug information of one file.
pub(super) struct Dwarf {
    resolver: ElfResolver,
    options: FindSymOpts,
    image_bytes: u64,
}

/// What is looked up.
#[derive(Clone, Copy)]
pub(super) struct DwarfOptions<'a> {
    pub(super) inlines: bool,
    /// The most that the sections may take, decompressed.
    pub(super) limit: u64,
    /// Where supplementary files (`.gnu_debugaltlink`, by dwz) are looked for. Only for
    /// debug files that the host's administrator installed: blazesym opens what such a
    /// link names.
    pub(super) supplementary: Option<&'a [PathBuf]>,
}

impl Dwarf {
    /// `None` if the file has no debug information.
    pub(super) fn open(
        elf: &Elf<'_>,
        options: DwarfOptions<'_>,
    ) -> Result<Option<Self>, DwarfError> {
        if !has_dwarf(elf) {
            return Ok(None);
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("everflame-dwarf", flags).map_err(io::Error::from)?;
        let mut image = File::from(memory);
        let sections = write_image(elf, &mut image, options)?;
        image.flush()?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(image.as_fd(), seals).map_err(io::Error::from)?;
        dwarf_nesting::check(&image, &sections)?;
        let resolver =
            fenced(|| open_resolver(&image, options.supplementary.unwrap_or_default()))??;
        let image_bytes = image.metadata()?.len();
        let options =
            if options.inlines { FindSymOpts::CodeInfoAndInlined } else { FindSymOpts::CodeInfo };
        Ok(Some(Self { resolver, options, image_bytes }))
    }

    /// The functions at `svma`, innermost first; empty if nothing is known.
    pub(super) fn lookup(&self, svma: u64) -> Result<Vec<DwarfLine>, DwarfError> {
        fenced(|| match self.resolver.find_sym(svma, &self.options)? {
            Ok(symbol) => Ok(lines(&symbol)),
            Err(_unknown) => Ok(Vec::new()),
        })?
    }

    /// The image, and as much again for what is parsed of it. Measured with Rust programs,
    /// both together came to 0.7 times the image before the first lookup (most of it is
    /// not touched), and to 2.3 times when every function had been looked up.
    pub(super) fn bytes(&self) -> usize {
        usize::try_from(self.image_bytes.saturating_mul(2)).unwrap_or(usize::MAX)
    }
}

pub(super) fn has_dwarf(elf: &Elf<'_>) -> bool {
    elf.section(".debug_info").or_else(|| elf.section(".zdebug_info")).is_some_and(not_empty)
}

fn not_empty(section: &Section) -> bool {
    section.size > 0
}

/// blazesym opens and maps the image by path; the mapping outlives the file descriptor.
fn open_resolver(image: &File, debug_dirs: &[PathBuf]) -> Result<ElfResolver, DwarfError> {
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    Ok(ElfResolver::open_with_debug_dirs(Path::new(&path), debug_dirs)?)
}

/// The last line of defence. What `work` refers to must not be used after a panic.
fn fenced<T>(work: impl FnOnce() -> T) -> Result<T, DwarfError> {
    // The payload of a panic says nothing that the panic hook has not printed.
    catch_unwind(AssertUnwindSafe(work)).map_err(|_payload| DwarfError::Panic)
}

/// blazesym lists inlined functions outermost first, after the function itself.
fn lines(symbol: &ResolvedSym<'_>) -> Vec<DwarfLine> {
    let inlined = symbol.inlined.iter().rev();
    let inlined = inlined.map(|call| line(&call.name, call.code_info.as_ref()));
    inlined.chain([line(symbol.name, symbol.code_info.as_deref())]).collect()
}

fn line(name: &str, code: Option<&CodeInfo<'_>>) -> DwarfLine {
    DwarfLine {
        name: name.to_owned(),
        file_name: code.map(|code| code.to_path().to_string_lossy().into_owned()),
        // Line 0 is how compilers say that code belongs to no line.
        line: code.and_then(|code| code.line).filter(|line| *line > 0),
    }
}
