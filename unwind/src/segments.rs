//! Loaded parts of a file: how addresses relate to file offsets.

use everflame_agent_common::unwind::page::MAX_FILE_OFFSET;

/// A part of the file that is loaded into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) address: u64,
}

/// Segments sorted by address, not overlapping, none empty, all within the file and within
/// what tables can address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments(Vec<Segment>);

impl Segments {
    pub(crate) fn new(segments: impl Iterator<Item = Segment>, file_size: u64) -> Self {
        let end_of_offsets = file_size.min(MAX_FILE_OFFSET);
        let mut sorted: Vec<Segment> = segments
            .filter_map(|segment| {
                let available = end_of_offsets.checked_sub(segment.offset)?;
                let size = segment.size.min(available);
                segment.address.checked_add(size)?;
                (size > 0).then_some(Segment { size, ..segment })
            })
            .collect();
        sorted.sort_by_key(|segment| segment.address);
        let mut end = 0;
        sorted.retain(|segment| {
            let is_apart = segment.address >= end;
            if is_apart {
                end = segment.address + segment.size;
            }
            is_apart
        });
        Self(sorted)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The segment that `address` lies in.
    pub(crate) fn around(&self, address: u64) -> Option<Segment> {
        let after = self.0.partition_point(|segment| segment.address <= address);
        let segment = self.0.get(after.checked_sub(1)?)?;
        (address - segment.address < segment.size).then_some(*segment)
    }

    /// File offsets of the addresses from `start` to `end`, as far as they lie in the segment
    /// of the first one.
    pub(crate) fn offsets(&self, start: u64, end: u64) -> Option<(u32, u32)> {
        let segment = self.around(start)?;
        let size = end.checked_sub(start)?.min(segment.address + segment.size - start);
        let first = segment.offset + (start - segment.address);
        // Fits: offsets are below MAX_FILE_OFFSET.
        let offsets = (u32::try_from(first).ok()?, u32::try_from(first + size).ok()?);
        (size > 0).then_some(offsets)
    }

    /// The file offsets covered, sorted, with neighbours and overlapping ones joined.
    pub(crate) fn stretches(&self) -> Vec<(u32, u32)> {
        let mut stretches: Vec<(u32, u32)> = Vec::new();
        let mut sorted: Vec<_> = self
            .0
            .iter()
            .filter_map(|segment| self.offsets(segment.address, segment.address + segment.size))
            .collect();
        sorted.sort_unstable();
        for (start, end) in sorted {
            match stretches.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => stretches.push((start, end)),
            }
        }
        stretches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(of: &[(u64, u64, u64)]) -> Segments {
        let segments = of.iter().map(|&(offset, size, address)| Segment { offset, size, address });
        Segments::new(segments, 0x10_000)
    }

    #[test]
    fn address_becomes_offset_within_its_segment() {
        let code = segments(&[(0x3000, 0x1000, 0x40_3000), (0x1000, 0x1000, 0x40_0000)]);
        assert_eq!(code.offsets(0x40_0010, 0x40_0020), Some((0x1010, 0x1020)));
        assert_eq!(code.offsets(0x40_0ff0, 0x40_3010), Some((0x1ff0, 0x2000)));
        assert_eq!(code.offsets(0x40_3fff, 0x40_4000), Some((0x3fff, 0x4000)));
        for (start, end) in [(0x3f_ffff, 0x40_0010), (0x40_1000, 0x40_2000), (0x40_0010, 0x40_0000)]
        {
            assert_eq!(code.offsets(start, end), None, "{start:#x}");
        }
        assert_eq!(code.stretches(), [(0x1000, 0x2000), (0x3000, 0x4000)]);
    }

    #[test]
    fn lies_are_clipped_to_the_file() {
        let code = segments(&[
            (0xf000, u64::MAX, 0x1000),
            (0x1_0000, 0x1000, 0x8000),
            (u64::MAX, 1, 1),
            (0, 0x10, u64::MAX),
            (0x100, 0x100, 0x1800),
        ]);
        assert_eq!(code.stretches(), [(0xf000, 0x1_0000)]);
    }

    #[test]
    fn neighbours_are_joined() {
        let code = segments(&[(0, 0x100, 0), (0x100, 0x100, 0x1000), (0x80, 0x10, 0x5000)]);
        assert_eq!(code.stretches(), [(0, 0x200)]);
    }
}
