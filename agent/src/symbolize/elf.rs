//! The headers of an ELF file and bounded access to its sections.
//!
//! The files are anyone's, see [`super::foreign_file`]: headers and sections are copied out,
//! and every size is checked against a limit first.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64};
use object::pod::{Pod, from_bytes, slice_from_all_bytes};
use object::{Endianness, U64};
use thiserror::Error;

use super::foreign_file::FileRange;
use crate::object::BuildId;

const LITTLE: Endianness = Endianness::Little;

/// Why a file's symbols cannot be used.
#[derive(Debug, Error)]
pub(super) enum ElfError {
    #[error("cannot read {len} bytes at offset {offset:#x}; has the file been truncated?")]
    Read { offset: u64, len: u64, source: io::Error },
    #[error("cannot decompress section `{section}`")]
    Decompress { section: String, source: io::Error },
    #[error("section `{section}` is compressed in an unknown way ({scheme})")]
    UnknownCompression { section: String, scheme: u32 },
    #[error("{what} takes {bytes} bytes, more than the {limit} that are read")]
    TooLarge { what: String, bytes: u64, limit: u64 },
    #[error("not a 64-bit little-endian ELF file")]
    Unsupported,
    #[error("malformed {what}")]
    Malformed { what: &'static str },
}

/// A part of the file that is loaded into memory.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    file_size: u64,
    address: u64,
    memory_size: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) kind: u32,
    pub(super) flags: u64,
    pub(super) address: u64,
    pub(super) offset: u64,
    pub(super) size: u64,
    /// The section with the strings of this one, where it is a symbol table.
    pub(super) link: u32,
}

impl Section {
    pub(super) fn is_executable(&self) -> bool {
        self.flags & u64::from(elf::SHF_EXECINSTR) != 0
    }

    fn end_address(&self) -> u64 {
        self.address.saturating_add(self.size)
    }
}

/// How a file's addresses relate to its offsets; all that is kept of a file while none
/// of its symbols are in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    /// The address in the file (svma) of what is at `offset`.
    pub(super) fn address_of(&self, offset: u64) -> Option<u64> {
        self.0.iter().find_map(|segment| {
            let within = offset.checked_sub(segment.offset)?;
            (within < segment.file_size).then(|| segment.address.wrapping_add(within))
        })
    }

    /// Where in the file the byte at an address (svma) is.
    pub(super) fn offset_of(&self, address: u64) -> Option<u64> {
        self.0.iter().find_map(|segment| {
            let within = address.checked_sub(segment.address)?;
            (within < segment.file_size).then(|| segment.offset.wrapping_add(within))
        })
    }

    /// Whether all addresses from `start` to before `end` are in one segment, be it in the
    /// part that the file has nothing for (.bss).
    pub(super) fn contain(&self, start: u64, end: u64) -> bool {
        self.0.iter().any(|segment| {
            let ends = segment.address.checked_add(segment.memory_size);
            segment.address <= start && ends.is_some_and(|segment_end| end <= segment_end)
        })
    }
}

/// First addresses and ends of the executable sections, sorted: a hostile file can have
/// 65,000 of them, and millions of symbols to be looked for in them.
pub(super) struct CodeSections(Vec<(u64, u64)>);

impl CodeSections {
    /// Where the section around `address` ends.
    pub(super) fn end_around(&self, address: u64) -> Option<u64> {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        let (_, end) = *self.0.get(after.checked_sub(1)?)?;
        (address < end).then_some(end)
    }
}

/// An ELF file's headers. The file itself is passed to each call that reads from it.
pub(super) struct Elf<'f> {
    file: &'f File,
    pub(super) segments: Segments,
    pub(super) sections: Vec<Section>,
    pub(super) build_id: Option<BuildId>,
    machine: u16,
}

/// Chromium with all debug information has about 50.
const MAX_HEADER_BYTES: u64 = 4 << 20;
const MAX_NOTE_BYTES: u64 = 64 << 10;

impl<'f> Elf<'f> {
    pub(super) fn read(file: &'f File) -> Result<Self, ElfError> {
        let header = read_bytes(file, 0, size_of::<FileHeader64<Endianness>>() as u64)?;
        let (header, _) = from_bytes::<FileHeader64<Endianness>>(&header)
            .map_err(|()| ElfError::Malformed { what: "file header" })?;
        let ident = &header.e_ident;
        if ident.magic != elf::ELFMAG
            || ident.class != elf::ELFCLASS64
            || ident.data != elf::ELFDATA2LSB
        {
            return Err(ElfError::Unsupported);
        }
        let (segments, notes) = read_segments(file, header)?;
        let sections = read_sections(file, header)?;
        let machine = header.e_machine.get(LITTLE);
        let segments = Segments(segments);
        let mut elf = Self { file, segments, sections, build_id: None, machine };
        elf.build_id = elf.read_build_id(&notes);
        Ok(elf)
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name && section.kind != elf::SHT_NOBITS)
    }

    /// `e_machine`, such as `EM_X86_64`.
    pub(super) fn machine(&self) -> u16 {
        self.machine
    }

    /// Where code is.
    pub(super) fn code(&self) -> CodeSections {
        let executable = self.sections.iter().filter(|section| section.is_executable());
        let mut sorted: Vec<_> =
            executable.map(|section| (section.address, section.end_address())).collect();
        sorted.sort_unstable();
        CodeSections(sorted)
    }

    /// A section's bytes as they are in the file.
    pub(super) fn raw(&self, section: &Section, limit: u64) -> Result<Vec<u8>, ElfError> {
        if section.size > limit {
            let what = format!("section `{}`", section.name);
            return Err(ElfError::TooLarge { what, bytes: section.size, limit });
        }
        read_bytes(self.file, section.offset, section.size)
    }

    /// A reader of a section's bytes as they are in the file.
    pub(super) fn reader(&self, section: &Section) -> FileRange<'f> {
        FileRange::new(self.file, section.offset, section.size)
    }

    pub(super) fn file(&self) -> &'f File {
        self.file
    }

    /// The `.note.gnu.build-id` note, found by its section or, in files without
    /// sections, by its segment.
    fn read_build_id(&self, note_segments: &[(u64, u64)]) -> Option<BuildId> {
        let sections = self
            .sections
            .iter()
            .filter(|section| section.kind == elf::SHT_NOTE)
            .map(|section| (section.offset, section.size));
        sections.chain(note_segments.iter().copied()).find_map(|(offset, size)| {
            let notes = read_bytes(self.file, offset, size.min(MAX_NOTE_BYTES)).ok()?;
            build_id_in(&notes)
        })
    }
}

/// Notes are: name size, description size, type, then name and description, each padded
/// to four bytes (elf(5)).
fn build_id_in(mut notes: &[u8]) -> Option<BuildId> {
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let field = |at: usize| Some(u32::from_le_bytes(*header.get(at..)?.first_chunk()?));
        let (name_size, size, kind) = (field(0)?, field(4)?, field(8)?);
        let padded = |size: u32| usize::try_from(size).ok()?.checked_next_multiple_of(4);
        let (name, rest) = rest.split_at_checked(padded(name_size)?)?;
        let description = rest.get(..usize::try_from(size).ok()?)?;
        if kind == elf::NT_GNU_BUILD_ID && name.starts_with(elf::ELF_NOTE_GNU) {
            return BuildId::new(description);
        }
        notes = rest.get(padded(size)?..)?;
    }
}

/// Loaded segments, and offset and size of note segments.
type SegmentsAndNotes = (Vec<Segment>, Vec<(u64, u64)>);

fn read_segments(
    file: &File,
    header: &FileHeader64<Endianness>,
) -> Result<SegmentsAndNotes, ElfError> {
    let count = u64::from(header.e_phnum.get(LITTLE));
    let bytes = read_table::<ProgramHeader64<Endianness>>(file, header.e_phoff, count)?;
    let headers = slice_from_all_bytes::<ProgramHeader64<Endianness>>(&bytes)
        .map_err(|()| ElfError::Malformed { what: "program headers" })?;
    let (mut loaded, mut notes) = (Vec::new(), Vec::new());
    for header in headers {
        let (offset, file_size) = (header.p_offset.get(LITTLE), header.p_filesz.get(LITTLE));
        match header.p_type.get(LITTLE) {
            elf::PT_LOAD => {
                let address = header.p_vaddr.get(LITTLE);
                let memory_size = header.p_memsz.get(LITTLE);
                loaded.push(Segment { offset, file_size, address, memory_size });
            }
            elf::PT_NOTE => notes.push((offset, file_size)),
            _ => {}
        }
    }
    Ok((loaded, notes))
}

fn read_sections(file: &File, header: &FileHeader64<Endianness>) -> Result<Vec<Section>, ElfError> {
    if header.e_shoff.get(LITTLE) == 0 {
        return Ok(Vec::new());
    }
    let mut count = u64::from(header.e_shnum.get(LITTLE));
    let mut names_index = u32::from(header.e_shstrndx.get(LITTLE));
    let first = read_table::<SectionHeader64<Endianness>>(file, header.e_shoff, 1)?;
    let (first, _) = from_bytes::<SectionHeader64<Endianness>>(&first)
        .map_err(|()| ElfError::Malformed { what: "section headers" })?;
    // With 0xff00 sections or more, the real values are in the first section's header.
    if count == 0 {
        count = first.sh_size.get(LITTLE);
    }
    if names_index == u32::from(elf::SHN_XINDEX) {
        names_index = first.sh_link.get(LITTLE);
    }
    let bytes = read_table::<SectionHeader64<Endianness>>(file, header.e_shoff, count)?;
    let headers = slice_from_all_bytes::<SectionHeader64<Endianness>>(&bytes)
        .map_err(|()| ElfError::Malformed { what: "section headers" })?;
    let names = match headers.get(names_index as usize) {
        Some(names) if names.sh_size.get(LITTLE) <= MAX_HEADER_BYTES => {
            read_bytes(file, names.sh_offset.get(LITTLE), names.sh_size.get(LITTLE))?
        }
        _ => Vec::new(),
    };
    Ok(headers.iter().map(|header| section(header, &names)).collect())
}

fn section(header: &SectionHeader64<Endianness>, names: &[u8]) -> Section {
    let name = names.get(header.sh_name.get(LITTLE) as usize..).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = name.get(..64).unwrap_or(name);
    Section {
        name: String::from_utf8_lossy(name).into_owned(),
        kind: header.sh_type.get(LITTLE),
        flags: header.sh_flags.get(LITTLE),
        address: header.sh_addr.get(LITTLE),
        offset: header.sh_offset.get(LITTLE),
        size: header.sh_size.get(LITTLE),
        link: header.sh_link.get(LITTLE),
    }
}

fn read_table<T: Pod>(
    file: &File,
    offset: U64<Endianness>,
    count: u64,
) -> Result<Vec<u8>, ElfError> {
    let bytes = count.saturating_mul(size_of::<T>() as u64);
    if bytes > MAX_HEADER_BYTES {
        let what = "header table".to_owned();
        return Err(ElfError::TooLarge { what, bytes, limit: MAX_HEADER_BYTES });
    }
    read_bytes(file, offset.get(LITTLE), bytes)
}

/// Callers check `len` against a limit of theirs.
pub(super) fn read_bytes(file: &File, offset: u64, len: u64) -> Result<Vec<u8>, ElfError> {
    let failed = |source| ElfError::Read { offset, len, source };
    // A size from a header is only believed once the file is known to be that long.
    let available = file.metadata().map_err(failed)?.len();
    let fits = offset.checked_add(len).is_some_and(|end| end <= available);
    let Some(size) = usize::try_from(len).ok().filter(|_| fits) else {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    };
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}

/// The header in front of a compressed section's data (`Elf64_Chdr`).
pub(super) struct CompressionHeader {
    pub(super) scheme: u32,
    pub(super) size: u64,
}

impl CompressionHeader {
    pub(super) fn read(reader: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; 24];
        reader.read_exact(&mut bytes)?;
        let (header, _) = from_bytes::<elf::CompressionHeader64<Endianness>>(&bytes)
            .map_err(|()| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { scheme: header.ch_type.get(LITTLE), size: header.ch_size.get(LITTLE) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_id_is_found_behind_other_notes() {
        let mut notes = Vec::new();
        for (kind, description) in [(1_u32, [9_u8; 4]), (elf::NT_GNU_BUILD_ID, [1, 2, 3, 4])] {
            notes.extend(4_u32.to_le_bytes());
            notes.extend(4_u32.to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(b"GNU\0");
            notes.extend(description);
        }
        assert_eq!(build_id_in(&notes), BuildId::new(&[1, 2, 3, 4]));
        for len in 0..notes.len() {
            assert_eq!(build_id_in(&notes[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn offset_outside_all_segments_has_no_address() {
        let segments = Segments(vec![
            Segment { offset: 0, file_size: 0x100, address: 0x40_0000, memory_size: 0x100 },
            Segment { offset: 0x1000, file_size: 0x100, address: 0x40_2000, memory_size: 0x180 },
        ]);
        assert!(segments.contain(0x40_2100, 0x40_2180), "without a place in the file");
        assert!(!segments.contain(0x40_2100, 0x40_2181));
        assert!(!segments.contain(0x40_00ff, 0x40_2001));
        assert_eq!(segments.address_of(0xff), Some(0x40_00ff));
        assert_eq!(segments.address_of(0x100), None);
        assert_eq!(segments.address_of(0x1010), Some(0x40_2010));
        assert_eq!(segments.address_of(u64::MAX), None);
    }
}
