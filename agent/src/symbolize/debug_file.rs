//! Finds the separate debug file of a stripped binary, as gdb does: by build id under
//! the debug directories, else by `.gnu_debuglink` (a file name and a CRC-32) next to
//! the binary, in `.debug` there, and under the debug directories.
//!
//! What is found is only used if it says that it belongs to the binary: by the same
//! build id, or by the checksum where one of them has none. So it does no harm that the
//! binary's path may belong to another mount namespace.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::elf::Elf;
use super::foreign_file::{self, FileRange};
use crate::object::BuildId;

/// A debug file and whether it comes from a debug directory of the host.
pub(super) struct DebugFile {
    pub(super) file: File,
    pub(super) installed: bool,
}

/// A larger one's checksum takes seconds; by build id there is no limit.
const MAX_CHECKSUM_BYTES: u64 = 1 << 30;
const MAX_DEBUGLINK_BYTES: u64 = 4096;

/// `path` is the binary's; it may not exist.
pub(super) fn find(elf: &Elf<'_>, path: &Path, debug_dirs: &[PathBuf]) -> Option<DebugFile> {
    if let Some(build_id) = elf.build_id {
        for dir in debug_dirs {
            if let Some(file) = open_other(&build_id_path(dir, build_id)?, elf)
                && has_build_id(&file, build_id)
            {
                return Some(DebugFile { file, installed: true });
            }
        }
    }
    let link = DebugLink::read(elf)?;
    link.candidates(path, debug_dirs).into_iter().find_map(|(candidate, installed)| {
        let file = open_other(&candidate, elf)?;
        let belongs = match (elf.build_id, build_id_of(&file)) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => checksum(&file).is_ok_and(|checksum| checksum == link.checksum),
        };
        if !belongs {
            tracing::debug!(path = %candidate.display(), "debug file belongs to another binary");
        }
        belongs.then_some(DebugFile { file, installed })
    })
}

/// `DIR/.build-id/ab/cdef.debug`
fn build_id_path(dir: &Path, build_id: BuildId) -> Option<PathBuf> {
    let hex = build_id.to_string();
    let (first, rest) = hex.split_at_checked(2)?;
    Some(dir.join(".build-id").join(first).join(format!("{rest}.debug")))
}

struct DebugLink {
    name: String,
    checksum: u32,
}

impl DebugLink {
    /// A name, NUL, padding to four bytes, CRC-32.
    fn read(elf: &Elf<'_>) -> Option<Self> {
        let section = elf.section(".gnu_debuglink")?;
        let bytes = elf.raw(section, MAX_DEBUGLINK_BYTES).ok()?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let name = str::from_utf8(bytes.get(..end)?).ok()?;
        // Anything else would lead out of the directories that are searched.
        if name.is_empty() || name.contains('/') || name == ".." {
            return None;
        }
        let checksum = bytes.get((end + 1).next_multiple_of(4)..)?.first_chunk()?;
        Some(Self { name: name.to_owned(), checksum: u32::from_le_bytes(*checksum) })
    }

    fn candidates(&self, path: &Path, debug_dirs: &[PathBuf]) -> Vec<(PathBuf, bool)> {
        let mut candidates = Vec::new();
        if let Some(dir) = path.parent().filter(|dir| dir.is_absolute()) {
            candidates.push((dir.join(&self.name), false));
            candidates.push((dir.join(".debug").join(&self.name), false));
            if let Ok(below_root) = dir.strip_prefix("/") {
                let below = |debug: &PathBuf| debug.join(below_root).join(&self.name);
                candidates.extend(debug_dirs.iter().map(|debug| (below(debug), true)));
            }
        }
        candidates
    }
}

/// Opens a file that is not the binary itself.
fn open_other(path: &Path, elf: &Elf<'_>) -> Option<File> {
    let file = foreign_file::open(path).ok()?;
    (!foreign_file::is_same(&file, elf.file())).then_some(file)
}

fn build_id_of(file: &File) -> Option<BuildId> {
    Elf::read(file).ok()?.build_id
}

fn has_build_id(file: &File, build_id: BuildId) -> bool {
    build_id_of(file) == Some(build_id)
}

fn checksum(file: &File) -> io::Result<u32> {
    let len = file.metadata()?.len();
    if len > MAX_CHECKSUM_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut range = FileRange::new(file, 0, len);
    let mut crc = flate2::Crc::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match range.read(&mut buffer)? {
            0 => return Ok(crc.sum()),
            read => crc.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debuglink_is_looked_for_where_gdb_looks() {
        let link = DebugLink { name: "app.debug".to_owned(), checksum: 0 };
        let found = link.candidates(Path::new("/opt/app/bin/app"), &["/usr/lib/debug".into()]);
        let paths: Vec<_> = found.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "/opt/app/bin/app.debug",
                "/opt/app/bin/.debug/app.debug",
                "/usr/lib/debug/opt/app/bin/app.debug",
            ]
        );
        assert!(link.candidates(Path::new("[vdso]"), &[]).is_empty());
    }
}
