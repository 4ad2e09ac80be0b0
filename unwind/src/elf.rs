//! The headers of an ELF file: where its code lies, and where its call frame information.
//!
//! The files are anyone's: headers and sections are copied out, and every size is checked
//! against a limit first.

use std::io::{self, Read};

use flate2::read::ZlibDecoder;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64};
use object::pod::{Pod, from_bytes, slice_from_all_bytes};
use object::{Endianness, U64};

use crate::error::CompileError;
use crate::read_at::{ReadAt, read_bytes};
use crate::segments::{Segment, Segments};

const LITTLE: Endianness = Endianness::Little;

/// Chromium with all debug information has about 50 sections of 64 bytes.
const MAX_HEADER_BYTES: u64 = 4 << 20;

/// A machine whose code can be unwound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// A section, or what stands for one in a file without section headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    pub(crate) address: u64,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    is_compressed: bool,
}

/// The headers of one file.
pub(crate) struct Elf<'f> {
    file: &'f dyn ReadAt,
    pub(crate) arch: Arch,
    /// Address of the first instruction that is executed; 0 if there is none.
    pub(crate) entry: u64,
    /// What is mapped executable.
    pub(crate) code: Segments,
    /// All that is loaded.
    loaded: Segments,
    /// Address and file offset of PT_GNU_EH_FRAME.
    frame_header: Option<(u64, u64)>,
    sections: Vec<SectionHeader64<Endianness>>,
    /// The section with the sections' names.
    names: Vec<u8>,
}

impl<'f> Elf<'f> {
    pub(crate) fn read(file: &'f dyn ReadAt) -> Result<Self, CompileError> {
        let bytes = read_bytes(file, 0, size_of::<FileHeader64<Endianness>>() as u64)?;
        let (header, _) = from_bytes::<FileHeader64<Endianness>>(&bytes)
            .map_err(|()| CompileError::Malformed { what: "file header" })?;
        let ident = &header.e_ident;
        if ident.magic != elf::ELFMAG
            || ident.class != elf::ELFCLASS64
            || ident.data != elf::ELFDATA2LSB
        {
            return Err(CompileError::NotElf64);
        }
        let arch = match header.e_machine.get(LITTLE) {
            elf::EM_X86_64 => Arch::X86_64,
            elf::EM_AARCH64 => Arch::Aarch64,
            machine => return Err(CompileError::UnsupportedMachine { machine }),
        };
        match header.e_type.get(LITTLE) {
            elf::ET_EXEC | elf::ET_DYN => {}
            kind => return Err(CompileError::UnsupportedType { kind }),
        }
        let count = u64::from(header.e_phnum.get(LITTLE));
        let bytes = read_table::<ProgramHeader64<Endianness>>(file, header.e_phoff, count)?;
        let segments = slice_from_all_bytes::<ProgramHeader64<Endianness>>(&bytes)
            .map_err(|()| CompileError::Malformed { what: "program headers" })?;
        let file_size =
            file.size().map_err(|source| CompileError::Read { offset: 0, len: 0, source })?;
        let of_kind =
            |kind| segments.iter().filter(move |segment| segment.p_type.get(LITTLE) == kind);
        let loaded = |segment: &ProgramHeader64<Endianness>| Segment {
            offset: segment.p_offset.get(LITTLE),
            size: segment.p_filesz.get(LITTLE),
            address: segment.p_vaddr.get(LITTLE),
        };
        let is_code =
            |segment: &&ProgramHeader64<Endianness>| segment.p_flags.get(LITTLE) & elf::PF_X != 0;
        let code = of_kind(elf::PT_LOAD).filter(is_code).map(loaded);
        let code = Segments::new(code, file_size);
        if code.is_empty() {
            return Err(CompileError::NoCode);
        }
        let frame_header = of_kind(elf::PT_GNU_EH_FRAME)
            .map(|segment| (segment.p_vaddr.get(LITTLE), segment.p_offset.get(LITTLE)))
            .next();
        let loaded = Segments::new(of_kind(elf::PT_LOAD).map(loaded), file_size);
        // The vDSO of a foreign process and packed executables lack section headers, or have
        // some that point nowhere: the program headers are what counts.
        let (sections, names) = read_sections(file, header).unwrap_or_default();
        let entry = header.e_entry.get(LITTLE);
        Ok(Self { file, arch, entry, code, loaded, frame_header, sections, names })
    }

    /// The first section of this name that has contents.
    pub(crate) fn section(&self, name: &str) -> Option<Section> {
        self.headers()
            .find(|(section_name, header)| {
                *section_name == name.as_bytes() && header.sh_type.get(LITTLE) != elf::SHT_NOBITS
            })
            .map(|(_, header)| section(header))
    }

    /// Executable sections whose name begins like this.
    pub(crate) fn code_sections(&self, prefix: &'static str) -> impl Iterator<Item = Section> {
        self.headers()
            .filter(move |(name, header)| {
                name.starts_with(prefix.as_bytes())
                    && header.sh_flags.get(LITTLE) & u64::from(elf::SHF_EXECINSTR) != 0
            })
            .map(|(_, header)| section(header))
    }

    /// Whether Go's linker made it: its functions keep frame pointers, and what it says in
    /// `.debug_frame` leaves those out.
    pub(crate) fn is_go(&self) -> bool {
        [".go.buildinfo", ".note.go.buildid", ".gopclntab"]
            .into_iter()
            .any(|name| self.section(name).is_some())
    }

    /// Where PT_GNU_EH_FRAME lies: its address, and at most `limit` bytes of it.
    pub(crate) fn frame_header(&self, limit: u64) -> Option<(u64, Vec<u8>)> {
        let (address, offset) = self.frame_header?;
        let available = self.file.size().ok()?.checked_sub(offset)?;
        let bytes = read_bytes(self.file, offset, available.min(limit)).ok()?;
        Some((address, bytes))
    }

    /// What is loaded from `address` on up to the end of its segment, as a section.
    pub(crate) fn loaded_from(&self, address: u64) -> Option<Section> {
        let segment = self.loaded.around(address)?;
        let within = address - segment.address;
        Some(Section {
            address,
            offset: segment.offset + within,
            size: segment.size - within,
            is_compressed: false,
        })
    }

    /// Fills `buffer` with what a section begins with, if there is that much.
    pub(crate) fn read_start(&self, section: Section, buffer: &mut [u8]) {
        if section.size < buffer.len() as u64
            || self.file.read_exact_at(buffer, section.offset).is_err()
        {
            buffer.fill(0);
        }
    }

    /// A section's bytes, decompressed.
    pub(crate) fn contents(
        &self,
        section: Section,
        name: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, CompileError> {
        let too_large = |found| CompileError::TooLarge { what: "bytes of a section", found, limit };
        if section.size > limit {
            return Err(too_large(section.size));
        }
        let bytes = read_bytes(self.file, section.offset, section.size)?;
        if !section.is_compressed {
            return Ok(bytes);
        }
        let failed = |source| CompileError::Decompress { section: name, source };
        let (header, compressed) = from_bytes::<elf::CompressionHeader64<Endianness>>(&bytes)
            .map_err(|()| failed(io::ErrorKind::UnexpectedEof.into()))?;
        if header.ch_type.get(LITTLE) != elf::ELFCOMPRESS_ZLIB {
            return Err(failed(io::ErrorKind::Unsupported.into()));
        }
        // The size in the header is not believed: what comes out is counted.
        let mut inflated = Vec::new();
        ZlibDecoder::new(compressed).take(limit + 1).read_to_end(&mut inflated).map_err(failed)?;
        if inflated.len() as u64 > limit {
            return Err(too_large(inflated.len() as u64));
        }
        Ok(inflated)
    }

    fn headers(&self) -> impl Iterator<Item = (&[u8], &SectionHeader64<Endianness>)> {
        self.sections.iter().map(|header| {
            let name = self.names.get(header.sh_name.get(LITTLE) as usize..).unwrap_or_default();
            // Longer names are none of ours, and a hostile file has no end to them.
            let name = name.get(..64).unwrap_or(name);
            (name.split(|byte| *byte == 0).next().unwrap_or_default(), header)
        })
    }
}

fn section(header: &SectionHeader64<Endianness>) -> Section {
    Section {
        address: header.sh_addr.get(LITTLE),
        offset: header.sh_offset.get(LITTLE),
        size: header.sh_size.get(LITTLE),
        is_compressed: header.sh_flags.get(LITTLE) & u64::from(elf::SHF_COMPRESSED) != 0,
    }
}

/// Section headers, and the section with their names.
type SectionsAndNames = (Vec<SectionHeader64<Endianness>>, Vec<u8>);

fn read_sections(
    file: &dyn ReadAt,
    header: &FileHeader64<Endianness>,
) -> Result<SectionsAndNames, CompileError> {
    if header.e_shoff.get(LITTLE) == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let malformed = |()| CompileError::Malformed { what: "section headers" };
    let mut count = u64::from(header.e_shnum.get(LITTLE));
    let mut names_index = u32::from(header.e_shstrndx.get(LITTLE));
    let first = read_table::<SectionHeader64<Endianness>>(file, header.e_shoff, 1)?;
    let (first, _) = from_bytes::<SectionHeader64<Endianness>>(&first).map_err(malformed)?;
    // With 0xff00 sections or more, the real values are in the first section's header.
    if count == 0 {
        count = first.sh_size.get(LITTLE);
    }
    if names_index == u32::from(elf::SHN_XINDEX) {
        names_index = first.sh_link.get(LITTLE);
    }
    let bytes = read_table::<SectionHeader64<Endianness>>(file, header.e_shoff, count)?;
    let headers =
        slice_from_all_bytes::<SectionHeader64<Endianness>>(&bytes).map_err(malformed)?.to_vec();
    let names = match headers.get(names_index as usize) {
        Some(names) if names.sh_size.get(LITTLE) <= MAX_HEADER_BYTES => {
            read_bytes(file, names.sh_offset.get(LITTLE), names.sh_size.get(LITTLE))?
        }
        _ => Vec::new(),
    };
    Ok((headers, names))
}

fn read_table<T: Pod>(
    file: &dyn ReadAt,
    offset: U64<Endianness>,
    count: u64,
) -> Result<Vec<u8>, CompileError> {
    let bytes = count.saturating_mul(size_of::<T>() as u64);
    if bytes > MAX_HEADER_BYTES {
        let (what, limit) = ("bytes of a header table", MAX_HEADER_BYTES);
        return Err(CompileError::TooLarge { what, found: bytes, limit });
    }
    read_bytes(file, offset.get(LITTLE), bytes)
}
