//! Addresses and functions of the file that is looked at.
//!
//! Read in full and at leisure, unlike by the symboliser: this is one file, which its user
//! has named.

use std::fs::File;

use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::read::{Error, Object as _, ObjectSymbol as _, ReadCache};
use object::{Endianness, SymbolKind, elf};

use crate::object::BuildId;
use crate::symbolize::demangle;

/// A part of the file that is mapped as code.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

#[derive(Debug)]
struct Function {
    address: u64,
    size: u64,
    name: String,
}

/// What is known about a file besides its rules.
#[derive(Debug, Default)]
pub(super) struct Binary {
    pub(super) build_id: Option<BuildId>,
    /// Sorted by offset.
    code: Vec<Segment>,
    /// Sorted by address.
    functions: Vec<Function>,
}

impl Binary {
    pub(super) fn read(file: File) -> Result<Self, Error> {
        let cache = ReadCache::new(file);
        let file = ElfFile64::<Endianness, _>::parse(&cache)?;
        let endian = file.endian();
        let mut code: Vec<Segment> = file
            .elf_program_headers()
            .iter()
            .filter(|segment| {
                segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian) & elf::PF_X != 0
            })
            .map(|segment| Segment {
                offset: segment.p_offset(endian),
                size: segment.p_filesz(endian),
                address: segment.p_vaddr(endian),
            })
            .collect();
        code.sort_by_key(|segment| segment.offset);
        // A file without them, or with damaged ones, is shown without names.
        let symbols = file.symbols().chain(file.dynamic_symbols());
        let mut functions: Vec<Function> = symbols
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
            .filter_map(|symbol| {
                let name = symbol.name_bytes().ok().filter(|name| !name.is_empty())?;
                let name = String::from_utf8_lossy(name).into_owned();
                Some(Function { address: symbol.address(), size: symbol.size(), name })
            })
            .collect();
        // Of several at one address, the one that covers most; equal ones by name.
        functions.sort_by(|a, b| (a.address, b.size, &a.name).cmp(&(b.address, a.size, &b.name)));
        functions.dedup_by(|b, a| a.address == b.address && a.name == b.name);
        let build_id = file.build_id().ok().flatten().and_then(BuildId::new);
        Ok(Self { build_id, code, functions })
    }

    /// How many functions have a name.
    pub(super) fn functions(&self) -> usize {
        self.functions.len()
    }

    /// File offsets, from and to, of the functions that have this name, mangled or not.
    pub(super) fn functions_named(&self, name: &str) -> Vec<(u64, u64)> {
        let mut found: Vec<(u64, u64)> = self
            .functions
            .iter()
            .filter(|function| {
                function.name == name || demangle(&function.name).is_some_and(|n| n == name)
            })
            .filter_map(|function| {
                let start = self.offset_of(function.address)?;
                Some((start, start.saturating_add(function.size.max(1))))
            })
            .collect();
        found.dedup();
        found
    }

    /// The function that a file offset lies in, in readable form.
    pub(super) fn function_at(&self, offset: u64) -> Option<String> {
        let address = self.address_of(offset)?;
        let after = self.functions.partition_point(|function| function.address <= address);
        let last = self.functions.get(after.checked_sub(1)?)?;
        // The first of those that begin at the same address.
        let first = self.functions.partition_point(|f| f.address < last.address);
        let function = self.functions.get(first)?;
        if address - function.address >= function.size.max(1) {
            return None;
        }
        let name = demangle(&function.name).unwrap_or_else(|| function.name.clone());
        // Names are the file's, and the terminal obeys control characters.
        Some(name.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
    }

    pub(super) fn address_of(&self, offset: u64) -> Option<u64> {
        self.code.iter().find_map(|segment| {
            let within = offset.checked_sub(segment.offset)?;
            (within < segment.size).then(|| segment.address.wrapping_add(within))
        })
    }

    pub(super) fn offset_of(&self, address: u64) -> Option<u64> {
        self.code.iter().find_map(|segment| {
            let within = address.checked_sub(segment.address)?;
            (within < segment.size).then(|| segment.offset.wrapping_add(within))
        })
    }

    /// How much of what lies between two file offsets is mapped as code.
    pub(super) fn code_bytes(&self, start: u64, end: u64) -> u64 {
        let within = |segment: &Segment| {
            let segment_end = segment.offset.saturating_add(segment.size);
            end.min(segment_end).saturating_sub(start.max(segment.offset))
        };
        self.code.iter().map(within).sum()
    }

    /// Where code lies, for people.
    pub(super) fn code_addresses(&self) -> String {
        let ranges = self.code.iter().map(|segment| {
            let end = segment.address.saturating_add(segment.size);
            format!("{:#x} to {end:#x}", segment.address)
        });
        ranges.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(address: u64, size: u64, name: &str) -> Function {
        Function { address, size, name: name.to_owned() }
    }

    fn binary() -> Binary {
        Binary {
            build_id: None,
            code: vec![
                Segment { offset: 0x1000, size: 0x1000, address: 0x40_1000 },
                Segment { offset: 0x3000, size: 0x800, address: 0x40_4000 },
            ],
            functions: vec![
                function(0x40_1000, 0x20, "main"),
                function(0x40_1000, 0x10, "alias"),
                function(0x40_4000, 0x10, "_ZN3foo3barEv"),
                function(0x40_4100, 0, "asm\u{1b}[2J"),
            ],
        }
    }

    #[test]
    fn addresses_and_offsets_convert_within_code() {
        let binary = binary();
        assert_eq!(binary.address_of(0x3010), Some(0x40_4010));
        assert_eq!(binary.offset_of(0x40_4010), Some(0x3010));
        assert_eq!(binary.offset_of(0x40_4800), None);
        assert_eq!(binary.address_of(0x2000), None);
        assert_eq!(binary.code_bytes(0x1800, 0x3100), 0x900);
        assert_eq!(binary.code_addresses(), "0x401000 to 0x402000, 0x404000 to 0x404800");
    }

    #[test]
    fn functions_are_found_by_either_name() {
        let binary = binary();
        assert_eq!(binary.functions_named("alias"), [(0x1000, 0x1010)]);
        assert_eq!(binary.functions_named("foo::bar()"), [(0x3000, 0x3010)]);
        assert_eq!(binary.functions_named("_ZN3foo3barEv"), [(0x3000, 0x3010)]);
        assert!(binary.functions_named("foo").is_empty());
    }

    #[test]
    fn largest_function_names_an_address() {
        let binary = binary();
        let name = |offset| binary.function_at(offset);
        assert_eq!(name(0x101f).as_deref(), Some("main"));
        assert_eq!(name(0x1020), None);
        assert_eq!(name(0x3000).as_deref(), Some("foo::bar()"));
        assert_eq!(name(0x3100).as_deref(), Some("asm?[2J"));
    }
}
