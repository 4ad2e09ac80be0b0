//! What a table is filed under.

use std::fmt::Write as _;

/// Bytes of a build id that count, as many as the kernel keeps.
pub(super) const MAX_BUILD_ID: usize = 20;

const SUFFIX: &str = ".unwind";

/// Names a file's contents: its build id and its size. Not the build id alone: stripping
/// keeps it and moves the rest, and some files have one that was made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey {
    build_id: [u8; MAX_BUILD_ID],
    build_id_len: u8,
    file_size: u64,
}

impl CacheKey {
    /// The key of a file; of longer build ids only the first 20 bytes count. `None` if the
    /// build id is empty: then there is nothing to recognise the file by.
    pub fn new(build_id: &[u8], file_size: u64) -> Option<Self> {
        let counted = &build_id[..build_id.len().min(MAX_BUILD_ID)];
        let mut padded = [0; MAX_BUILD_ID];
        padded[..counted.len()].copy_from_slice(counted);
        let build_id_len = u8::try_from(counted.len()).ok().filter(|len| *len > 0)?;
        Some(Self { build_id: padded, build_id_len, file_size })
    }

    /// `BUILDID-SIZE.unwind`, both hexadecimal.
    pub(super) fn file_name(&self) -> String {
        let mut name = String::with_capacity(2 * MAX_BUILD_ID + 17 + SUFFIX.len());
        for byte in &self.build_id[..usize::from(self.build_id_len)] {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        let _ = write!(name, "-{:x}{SUFFIX}", self.file_size);
        name
    }

    /// As it is written into the file: 32 bytes.
    pub(super) fn encode(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..MAX_BUILD_ID].copy_from_slice(&self.build_id);
        bytes[MAX_BUILD_ID] = self.build_id_len;
        bytes[24..].copy_from_slice(&self.file_size.to_le_bytes());
        bytes
    }
}

/// Whether a file is one of a cache's.
pub(super) fn is_file_name(name: &str) -> bool {
    let hex = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    name.strip_suffix(SUFFIX)
        .and_then(|stem| stem.split_once('-'))
        .is_some_and(|(build_id, size)| hex(build_id) && hex(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_tells_build_ids_and_sizes_apart() {
        let name = |build_id: &[u8], size| CacheKey::new(build_id, size).unwrap().file_name();
        assert_eq!(name(&[0xab, 1], 0x1000), "ab01-1000.unwind");
        assert_ne!(name(&[1], 1), name(&[1, 0], 1));
        assert_eq!(name(&[7; 32], 1), name(&[7; 20], 1));
        assert!(CacheKey::new(&[], 5).is_none());
        assert!(is_file_name(&name(&[9; 20], u64::MAX)));
        for foreign in ["", ".unwind", "ab.unwind", "ab-.unwind", "AB-1.unwind", "ab-1", "../a-1"] {
            assert!(!is_file_name(foreign), "{foreign}");
        }
    }
}
