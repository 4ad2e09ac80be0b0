//! Refuses debug information that would overflow the stack.
//!
//! blazesym descends into inlined calls by recursion without a limit, and a stack overflow
//! cannot be caught. A file whose inlined calls are nested deeper than any compiler would
//! nest them is found beforehand by walking all entries, without recursion.

use std::fs::File;

use gimli::{
    Abbreviations, AbbreviationsCache, AbbreviationsCacheStrategy, DebugAbbrev, DebugInfo,
    EndianSlice, LittleEndian, UnitHeader,
};
use memmap2::Mmap;

use super::dwarf::DwarfError;
use super::image::ImageSections;

/// GCC and LLVM stay below 100 even with deep template and iterator chains; the frames of
/// this many calls take less than 512 KiB of stack.
const MAX_DEPTH: isize = 512;

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
    check_units(info, abbreviations)
}

type Slice<'a> = EndianSlice<'a, LittleEndian>;

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
