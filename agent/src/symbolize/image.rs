//! Writes the image of a file's debug information that blazesym reads: an ELF file with
//! the DWARF sections and nothing else that could lead it elsewhere.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use object::elf;

use super::dwarf::{DwarfError, DwarfOptions};
use super::elf::{CompressionHeader, Elf, ElfError, Section};
use super::elf_symbols::copy_bounded;
use super::foreign_file::FileRange;

/// What functions, inlined calls and lines are read from. Location lists, macros, names
/// and indices are not, and are half of what compilers write.
const SECTIONS: [&str; 10] = [
    "debug_abbrev",
    "debug_addr",
    "debug_aranges",
    "debug_info",
    "debug_line",
    "debug_line_str",
    "debug_ranges",
    "debug_rnglists",
    "debug_str",
    "debug_str_offsets",
];

/// Where a section is in the image.
struct Placed {
    name: String,
    kind: u32,
    offset: u64,
    size: u64,
    link: u32,
    entry_size: u64,
}

/// The sections of an image, for readers other than blazesym.
pub(super) struct ImageSections(Vec<Placed>);

impl ImageSections {
    /// Offset and size of the section in the image.
    pub(super) fn get(&self, name: &str) -> Option<(u64, u64)> {
        let section = self.0.iter().find(|section| section.name == name)?;
        Some((section.offset, section.size))
    }
}

pub(super) fn write_image(
    elf: &Elf<'_>,
    image: &mut File,
    options: DwarfOptions<'_>,
) -> Result<ImageSections, DwarfError> {
    let mut placed = vec![Placed::new("", elf::SHT_NULL, 0, 0)];
    image.write_all(&[0; 64])?;
    let mut left = options.limit;
    for name in SECTIONS {
        let section = elf.section(&format!(".{name}"));
        let Some(section) = section.or_else(|| elf.section(&format!(".z{name}"))) else { continue };
        let offset = image.stream_position()?;
        let size = copy_section(elf, section, image, left)?;
        left -= size;
        placed.push(Placed::new(&format!(".{name}"), elf::SHT_PROGBITS, offset, size));
    }
    if options.supplementary.is_some()
        && let Some(section) = elf.section(".gnu_debugaltlink")
    {
        let offset = image.stream_position()?;
        let size = copy_section(elf, section, image, 4096)?;
        placed.push(Placed::new(".gnu_debugaltlink", elf::SHT_PROGBITS, offset, size));
    }
    write_symbols(image, &mut placed)?;
    write_headers(image, &mut placed, elf.machine())?;
    Ok(ImageSections(placed))
}

impl Placed {
    fn new(name: &str, kind: u32, offset: u64, size: u64) -> Self {
        Self { name: name.to_owned(), kind, offset, size, link: 0, entry_size: 0 }
    }
}

/// Copies a section, decompressed, and returns its size in the image.
fn copy_section(
    elf: &Elf<'_>,
    section: &Section,
    image: &mut File,
    limit: u64,
) -> Result<u64, ElfError> {
    let name = section.name.as_str();
    let failed = |source| ElfError::Decompress { section: name.to_owned(), source };
    let too_large =
        |bytes| ElfError::TooLarge { what: "debug information".to_owned(), bytes, limit };
    let mut reader = elf.reader(section);
    if section.flags & u64::from(elf::SHF_COMPRESSED) != 0 {
        let header = CompressionHeader::read(&mut reader).map_err(failed)?;
        // Saves the work; what counts is what comes out.
        if header.size > limit {
            return Err(too_large(header.size));
        }
        return match header.scheme {
            elf::ELFCOMPRESS_ZLIB => inflate(reader, image, limit, name),
            elf::ELFCOMPRESS_ZSTD => {
                let decoder = zstd::stream::read::Decoder::new(reader).map_err(failed)?;
                copy_bounded(decoder, image, limit, name)
            }
            scheme => Err(ElfError::UnknownCompression { section: name.to_owned(), scheme }),
        };
    }
    if name.starts_with(".z") {
        // Before ELF had compression, sections began with "ZLIB" and their size.
        reader.read_exact(&mut [0; 12]).map_err(failed)?;
        return inflate(reader, image, limit, name);
    }
    if section.size > limit {
        return Err(too_large(section.size));
    }
    copy_within_kernel(elf.file(), &reader, image).map_err(|source| ElfError::Read {
        offset: section.offset,
        len: section.size,
        source,
    })
}

fn inflate(
    compressed: FileRange<'_>,
    image: &mut File,
    limit: u64,
    section: &str,
) -> Result<u64, ElfError> {
    let compressed = BufReader::with_capacity(64 << 10, compressed);
    copy_bounded(flate2::bufread::ZlibDecoder::new(compressed), image, limit, section)
}

/// `sendfile` takes an offset, so that the file's position stays where others left it.
fn copy_within_kernel(file: &File, range: &FileRange<'_>, image: &File) -> io::Result<u64> {
    const CHUNK: usize = 16 << 20;
    let mut offset = range.position();
    let end = offset + range.len();
    while offset < end {
        let wanted = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
        let copied = rustix::fs::sendfile(image.as_fd(), file.as_fd(), Some(&mut offset), wanted)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(range.len())
}

/// A symbol table of one symbol without a name that covers every address.
fn write_symbols(image: &mut File, placed: &mut Vec<Placed>) -> io::Result<()> {
    let strings = align(image)?;
    image.write_all(&[0; 8])?;
    let offset = image.stream_position()?;
    let mut symbols = [0; 48];
    symbols[28] = elf::STT_FUNC;
    symbols[30..32].copy_from_slice(&elf::SHN_ABS.to_le_bytes());
    symbols[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    image.write_all(&symbols)?;
    let link = u32::try_from(placed.len()).unwrap_or(0);
    placed.push(Placed::new(".strtab", elf::SHT_STRTAB, strings, 1));
    let mut table = Placed::new(".symtab", elf::SHT_SYMTAB, offset, symbols.len() as u64);
    (table.link, table.entry_size) = (link, 24);
    placed.push(table);
    Ok(())
}

/// Section names, section headers and, at last, the file header (elf(5)).
fn write_headers(image: &mut File, placed: &mut Vec<Placed>, machine: u16) -> io::Result<()> {
    let names_offset = align(image)?;
    let mut names = Vec::new();
    placed.push(Placed::new(".shstrtab", elf::SHT_STRTAB, names_offset, 0));
    let mut headers = Vec::new();
    let name_offsets: Vec<u32> = placed
        .iter()
        .map(|section| {
            let at = u32::try_from(names.len()).unwrap_or(0);
            names.extend_from_slice(section.name.as_bytes());
            names.push(0);
            at
        })
        .collect();
    if let Some(section) = placed.last_mut() {
        section.size = names.len() as u64;
    }
    image.write_all(&names)?;
    for (section, name) in placed.iter().zip(name_offsets) {
        headers.extend(name.to_le_bytes());
        headers.extend(section.kind.to_le_bytes());
        headers.extend([0; 16]); // flags, address
        headers.extend(section.offset.to_le_bytes());
        headers.extend(section.size.to_le_bytes());
        headers.extend(section.link.to_le_bytes());
        headers.extend(0_u32.to_le_bytes()); // info
        headers.extend(8_u64.to_le_bytes()); // alignment
        headers.extend(section.entry_size.to_le_bytes());
    }
    let headers_offset = align(image)?;
    image.write_all(&headers)?;

    let count = u16::try_from(placed.len()).unwrap_or(0);
    let mut header = Vec::with_capacity(64);
    header.extend([0x7f, b'E', b'L', b'F', elf::ELFCLASS64, elf::ELFDATA2LSB, elf::EV_CURRENT]);
    header.resize(16, 0);
    header.extend(elf::ET_DYN.to_le_bytes());
    header.extend(machine.to_le_bytes());
    header.extend(u32::from(elf::EV_CURRENT).to_le_bytes());
    header.extend([0; 16]); // entry, program headers
    header.extend(headers_offset.to_le_bytes());
    header.extend([0; 4]); // flags
    header.extend(64_u16.to_le_bytes());
    header.extend([0; 4]); // size and number of program headers
    header.extend(64_u16.to_le_bytes());
    header.extend(count.to_le_bytes());
    header.extend((count - 1).to_le_bytes());
    image.seek(SeekFrom::Start(0))?;
    image.write_all(&header)
}

/// Moves on to a multiple of 8, as blazesym's reader of tables needs it.
fn align(image: &mut File) -> io::Result<u64> {
    let at = image.stream_position()?;
    let padding = at.next_multiple_of(8) - at;
    image.write_all(&[0; 8][..usize::try_from(padding).unwrap_or(0)])?;
    image.stream_position()
}
