//! The names of symbols, read one at a time from the file that they are in.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::elf::Section;

/// Longer names are cut.
const MAX_NAME_BYTES: usize = 4096;
/// Most names fit.
const FIRST_READ: usize = 256;

/// A section of NUL-terminated names in a file, held open.
pub(super) struct NameFile {
    file: File,
    offset: u64,
    len: u64,
    version: Version,
    /// Whether the file is memory of our own that goes with it.
    in_memory: bool,
}

/// A file that is overwritten has other names where ours were.
#[derive(PartialEq, Eq)]
struct Version {
    size: u64,
    modified_ns: (i64, i64),
}

impl Version {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let modified_ns = (metadata.mtime(), metadata.mtime_nsec());
        Ok(Self { size: metadata.size(), modified_ns })
    }
}

impl NameFile {
    pub(super) fn new(file: &File, section: &Section) -> io::Result<Self> {
        let version = Version::of(file)?;
        // Memory files have no name in any directory.
        let in_memory = file.metadata()?.nlink() == 0 && is_memory(file);
        let len = section.size.min(version.size);
        Ok(Self { file: file.try_clone()?, offset: section.offset, len, version, in_memory })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The name at `offset`; `None` if the file is not what it was.
    pub(super) fn get(&self, offset: u64) -> Option<Vec<u8>> {
        if Version::of(&self.file).ok()? != self.version {
            return None;
        }
        let mut name = Vec::new();
        for len in [FIRST_READ, MAX_NAME_BYTES] {
            name.resize(len, 0);
            let read = self.read(offset, &mut name)?;
            name.truncate(read);
            if let Some(end) = name.iter().position(|byte| *byte == 0) {
                name.truncate(end);
                break;
            }
        }
        Some(name)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Option<usize> {
        let left = usize::try_from(self.len.checked_sub(offset)?).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        self.file.read_at(&mut buffer[..wanted], self.offset.checked_add(offset)?).ok()
    }

    pub(super) fn bytes(&self) -> usize {
        let memory = if self.in_memory { self.version.size } else { 0 };
        size_of::<Self>() + usize::try_from(memory).unwrap_or(usize::MAX)
    }
}

/// Whether the file is on no file system that anybody else could use.
fn is_memory(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok()
}

/// Reads how names begin, one after the other: those of neighbouring symbols are
/// neighbours in most files.
pub(super) struct NameReader<'n> {
    names: &'n NameFile,
    window: [u8; 1024],
    window_offset: u64,
    window_len: usize,
}

/// As much of a name as it takes to tell what kind of name it is.
pub(super) type Begin = [u8; 4];

impl<'n> NameReader<'n> {
    pub(super) fn new(names: &'n NameFile) -> Self {
        Self { names, window: [0; 1024], window_offset: 0, window_len: 0 }
    }

    /// The first bytes of the name at `offset`, filled up with NUL; `None` if it is empty.
    pub(super) fn begin(&mut self, offset: u64) -> Option<Begin> {
        let found = match self.within(offset) {
            Some(found) => found,
            None => {
                self.window_len = 0;
                self.window_len = self.names.read(offset, &mut self.window)?;
                self.window_offset = offset;
                let mut begin = Begin::default();
                let len = self.window_len.min(begin.len());
                begin[..len].copy_from_slice(&self.window[..len]);
                begin
            }
        };
        let mut begin = found;
        if let Some(end) = begin.iter().position(|byte| *byte == 0) {
            begin[end..].fill(0);
        }
        (begin[0] != 0).then_some(begin)
    }

    fn within(&self, offset: u64) -> Option<Begin> {
        let at = usize::try_from(offset.checked_sub(self.window_offset)?).ok()?;
        self.window.get(..self.window_len)?.get(at..)?.first_chunk().copied()
    }
}
