//! Functions of an ELF file by their names, read when somebody asks for them.
//!
//! The other way round than all else here, and asked once for a file; so nothing is kept.

use std::fs::File;

use object::Endianness;
use object::elf;
use thiserror::Error;

use super::elf::{Elf, ElfError};
use super::elf_symbols::{entries, names_of};
use super::name_file::NameReader;

/// Why a file's functions cannot be looked for.
#[derive(Debug, Error)]
#[error(transparent)]
pub(crate) struct NamedFunctionsError(#[from] ElfError);

/// A name of a function, and where that lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedFunction {
    pub(crate) name: String,
    /// In the file.
    pub(crate) offset: u64,
    /// Bytes of code.
    pub(crate) size: u64,
}

/// Those functions of a file whose names are wanted, by `.symtab` and `.dynsym`; a name for each. Of
/// functions elsewhere (behind the PLT), of those that are chosen at run time, and of labels without a size it
/// is not known where they lie.
///
/// `begins` says by the first four bytes whether a name may be wanted.
pub(crate) fn named_functions(
    file: &File,
    begins: impl Fn([u8; 4]) -> bool,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<NamedFunction>, NamedFunctionsError> {
    let little = Endianness::Little;
    let elf = Elf::read(file)?;
    let code = elf.code();
    let mut found = Vec::new();
    for section in [".symtab", ".dynsym"].iter().filter_map(|name| elf.section(name)) {
        let names = names_of(&elf, section)?;
        let mut reader = NameReader::new(&names);
        for symbol in entries(&elf, section) {
            let symbol = symbol?;
            let (address, size) = (symbol.st_value.get(little), symbol.st_size.get(little));
            let is_function = symbol.st_info & 0xf == elf::STT_FUNC && size > 0;
            if !is_function || symbol.st_shndx.get(little) == elf::SHN_UNDEF {
                continue;
            }
            let at = u64::from(symbol.st_name.get(little));
            if !reader.begin(at).is_some_and(&begins) || code.end_around(address).is_none() {
                continue;
            }
            let Some(name) = names.get(at).and_then(|name| String::from_utf8(name).ok()) else {
                continue;
            };
            // `malloc@@GLIBC_2.2.5` in static tables of some linkers.
            let name = name.split('@').next().unwrap_or_default().to_owned();
            let Some(offset) = elf.segments.offset_of(address).filter(|_| is_wanted(&name)) else {
                continue;
            };
            let function = NamedFunction { name, offset, size };
            if !found.contains(&function) {
                found.push(function);
            }
        }
    }
    Ok(found)
}
