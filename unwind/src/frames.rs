//! The sections that call frame information lies in, and where its entries begin.
//!
//! The length in front of each entry leads to the next one, so one that is damaged costs
//! only itself.

use gimli::{BaseAddresses, LittleEndian};

use crate::elf::Elf;
use crate::error::CompileError;
use crate::limits::Limits;

/// Sections that call frame information is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    EhFrame,
    DebugFrame,
}

/// One such section.
#[derive(Debug)]
pub(crate) struct FrameSection {
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
    pub(crate) bases: BaseAddresses,
    /// Nobody says how long it is: it ends at an entry of length 0, or where it makes no sense.
    is_open_ended: bool,
}

impl FrameSection {
    pub(crate) fn eh_frame(elf: &Elf<'_>, limits: &Limits) -> Result<Option<Self>, CompileError> {
        let limit = u64::from(limits.section_bytes);
        let found = elf.section(".eh_frame").map(|section| (section, false));
        let Some((mut section, is_open_ended)) =
            found.or_else(|| Some((elf.loaded_from(eh_frame_address(elf)?)?, true)))
        else {
            return Ok(None);
        };
        if is_open_ended {
            section.size = section.size.min(limit);
        }
        let bytes = elf.contents(section, ".eh_frame", limit)?;
        // An address of 0 where there is none: what is relative to it, mostly the address of
        // exception tables, is not looked at, and must not keep gimli from reading on.
        let address = |name| elf.section(name).map_or(0, |section| section.address);
        let bases = BaseAddresses::default()
            .set_eh_frame(section.address)
            .set_eh_frame_hdr(address(".eh_frame_hdr"))
            .set_text(address(".text"))
            .set_got(address(".got"));
        Ok(Some(Self { kind: Kind::EhFrame, bytes, bases, is_open_ended }))
    }

    pub(crate) fn debug_frame(
        elf: &Elf<'_>,
        limits: &Limits,
    ) -> Result<Option<Self>, CompileError> {
        const NAME: &str = ".debug_frame";
        let Some(section) = elf.section(NAME) else { return Ok(None) };
        let bytes = elf.contents(section, NAME, u64::from(limits.section_bytes))?;
        let bases = BaseAddresses::default();
        Ok(Some(Self { kind: Kind::DebugFrame, bytes, bases, is_open_ended: false }))
    }

    /// Positions of all entries, CIEs and FDEs alike.
    pub(crate) fn entries(&self) -> Entries<'_> {
        Entries { bytes: &self.bytes, position: 0, is_open_ended: self.is_open_ended }
    }
}

/// Where `.eh_frame` lies in a file without section headers.
fn eh_frame_address(elf: &Elf<'_>) -> Option<u64> {
    /// Version, three encodings, two pointers of at most 8 bytes.
    const LEN: u64 = 20;
    let (address, bytes) = elf.frame_header(LEN)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(address);
    let header = gimli::EhFrameHdr::new(&bytes, LittleEndian).parse(&bases, 8).ok()?;
    header.eh_frame_ptr().direct().ok()
}

/// Walks from entry to entry.
#[derive(Debug)]
pub(crate) struct Entries<'a> {
    bytes: &'a [u8],
    position: usize,
    is_open_ended: bool,
}

impl Iterator for Entries<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            let entry = self.position;
            let len = entry_len(self.bytes.get(entry..)?)?;
            self.position = entry.checked_add(len).filter(|next| *next <= self.bytes.len())?;
            // An entry of length 0 ends the section for those who read it front to back, but
            // linkers put more behind it where objects had one each.
            if len > 4 {
                return Some(entry);
            }
            if self.is_open_ended {
                return None;
            }
        }
    }
}

impl Entries<'_> {
    /// Bytes that could not be made sense of, once there are no more entries.
    pub(crate) fn left(&self) -> usize {
        if self.is_open_ended { 0 } else { self.bytes.len() - self.position }
    }
}

/// Length of the entry that begins here, with its length field.
pub(crate) fn entry_len(bytes: &[u8]) -> Option<usize> {
    let (short, rest) = bytes.split_first_chunk::<4>()?;
    match u32::from_le_bytes(*short) {
        u32::MAX => {
            let long = u64::from_le_bytes(*rest.first_chunk::<8>()?);
            usize::try_from(long).ok()?.checked_add(12)
        }
        len => usize::try_from(len).ok()?.checked_add(4),
    }
}
