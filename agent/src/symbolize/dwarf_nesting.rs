//! Refuses debug information that would overflow the stack or take far more memory, once
//! parsed, than its size.
//!
//! blazesym descends into inlined calls by recursion without a limit, and a stack overflow
//! cannot be caught. A file whose inlined calls are nested deeper than any compiler would
//! nest them is found beforehand by walking all entries, without recursion.
//!
//! A unit takes about 1 KiB in blazesym, and 11 bytes in a file that means harm. Tables of
//! abbreviations take some 25 times their size, and each unit can begin in the middle of
//! another's, so that all of them are parsed again for each. Compilers write none of that.

use std::fs::File;

use gimli::{
    Abbreviations, AbbreviationsCache, AbbreviationsCacheStrategy, DebugAbbrev, DebugInfo,
    EndianSlice, LittleEndian, Reader, UnitHeader,
};
use memmap2::Mmap;

use super::dwarf::DwarfError;
use super::image::ImageSections;

/// GCC and LLVM stay below 100 even with deep template and iterator chains; the frames of
/// this many calls take less than 512 KiB of stack.
const MAX_DEPTH: isize = 512;

/// So many units and bytes of abbreviations are fine in any file.
const MANY_UNITS: usize = 256;
const MANY_BYTES: usize = 64 << 10;
/// What a unit takes in the image on average, lines and strings included: glibc's, which
/// are small, take 4 KiB.
const MIN_UNIT_BYTES: usize = 256;
/// Of glibc's debug information, 6 % are abbreviations.
const MIN_ABBREVIATION_SHARE: usize = 6;

/// `image` must be sealed.
pub(super) fn check(image: &File, sections: &ImageSections) -> Result<(), DwarfError> {
    // SAFETY: the image is our own memory and sealed: nobody can change or shrink it.
    let image = unsafe { Mmap::map(image) }?;
    let section = |name: &str| {
        let (offset, size) = sections.get(name)?;
        let (offset, size) = (usize::try_from(offset).ok()?, usize::try_from(size).ok()?);
        image.get(offset..offset.checked_add(size)?)
    };
    let info = DebugInfo::new(section(".debug_info").unwrap_or_default(), LittleEndian);
    let abbreviations =
        DebugAbbrev::new(section(".debug_abbrev").unwrap_or_default(), LittleEndian);
    let size = |name| section(name).unwrap_or_default().len();
    let units = check_unit_count(info, image.len())?;
    if size(".debug_abbrev") > MANY_BYTES + image.len() / MIN_ABBREVIATION_SHARE {
        return Err(DwarfError::Disproportionate { what: "abbreviations" });
    }
    check_overlaps(section(".debug_abbrev").unwrap_or_default(), units)?;
    check_units(info, abbreviations)
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Returns where the units' abbreviations begin, sorted, each once.
fn check_unit_count(
    info: DebugInfo<Slice<'_>>,
    image_len: usize,
) -> Result<Vec<usize>, DwarfError> {
    let limit = MANY_UNITS + image_len / MIN_UNIT_BYTES;
    let mut offsets = Vec::new();
    let mut units = info.units();
    while let Some(unit) = units.next()? {
        if offsets.len() >= limit {
            return Err(DwarfError::Disproportionate { what: "units" });
        }
        offsets.push(unit.debug_abbrev_offset().0);
    }
    offsets.sort_unstable();
    offsets.dedup();
    Ok(offsets)
}

/// Each table that a unit uses must end before the next one begins.
fn check_overlaps(abbreviations: &[u8], offsets: Vec<usize>) -> Result<(), DwarfError> {
    let mut end = 0;
    for offset in offsets {
        if offset < end {
            return Err(DwarfError::Disproportionate { what: "overlapping abbreviations" });
        }
        let Some(table) = abbreviations.get(offset..) else { continue };
        let mut table = Slice::new(table, LittleEndian);
        // One that is malformed is read to where it breaks; all of it counts as used.
        let _malformed = skip_table(&mut table);
        end = abbreviations.len() - table.len();
    }
    Ok(())
}

/// DWARF 5, section 7.5.3: code, tag, whether there are children; names and forms.
fn skip_table(table: &mut Slice<'_>) -> gimli::Result<()> {
    while table.read_uleb128()? != 0 {
        table.read_uleb128()?;
        table.read_u8()?;
        loop {
            let (name, form) = (table.read_uleb128()?, table.read_uleb128()?);
            if form == u64::from(gimli::DW_FORM_implicit_const.0) {
                table.read_sleb128()?;
            }
            if (name, form) == (0, 0) {
                break;
            }
        }
    }
    Ok(())
}

fn check_units(
    info: DebugInfo<Slice<'_>>,
    abbreviations: DebugAbbrev<Slice<'_>>,
) -> Result<(), DwarfError> {
    let mut cache = AbbreviationsCache::new();
    cache.populate(AbbreviationsCacheStrategy::Duplicates, &abbreviations, info.units());
    let mut units = info.units();
    while let Some(unit) = units.next()? {
        let Ok(table) = cache.get(&abbreviations, unit.debug_abbrev_offset()) else { continue };
        match is_deeper(&unit, &table, MAX_DEPTH) {
            Ok(false) => {}
            Ok(true) => return Err(DwarfError::Nesting { limit: MAX_DEPTH }),
            // blazesym will not get further than this either, and has other units.
            Err(error) => tracing::trace!(%error, "unit with malformed entries"),
        }
    }
    Ok(())
}

fn is_deeper(
    unit: &UnitHeader<Slice<'_>>,
    abbreviations: &Abbreviations,
    limit: isize,
) -> gimli::Result<bool> {
    let mut entries = unit.entries_raw(abbreviations, None)?;
    while !entries.is_empty() {
        if entries.next_depth() > limit {
            return Ok(true);
        }
        if let Some(abbreviation) = entries.read_abbreviation()? {
            entries.skip_attributes(abbreviation.attributes())?;
        }
    }
    Ok(false)
}
