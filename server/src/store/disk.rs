//! How much room the file system has.
//!
//! The collector stops taking batches while there is still space left, because
//! the storage engine needs some to flush and compact what it has taken already:
//! it must never meet a full disk halfway.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Free and total space of the file system that a directory is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What an unprivileged process may still write.
    pub free_bytes: u64,
    /// The size of the file system.
    pub total_bytes: u64,
}

impl Room {
    /// Asks the file system that `path` is on.
    ///
    /// # Errors
    /// When `statvfs` fails.
    pub fn of(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Self {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }
}

/// Bytes that the files of one directory with this extension occupy on disk,
/// which for a preallocated file is less than its length.
///
/// # Errors
/// When the directory cannot be read.
pub fn occupied_bytes(dir: &Path, extension: &str) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            match fs::metadata(&path) {
                // st_blocks counts units of 512 bytes on every file system.
                Ok(metadata) => bytes += metadata.blocks() * 512,
                // The engine deletes journals when it likes.
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(err),
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_within_the_size_of_the_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::of(dir.path()).unwrap();
        assert!(room.total_bytes > 0);
        assert!(room.free_bytes <= room.total_bytes);
    }

    #[test]
    fn occupied_bytes_leave_out_holes_and_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let sparse = fs::File::create(dir.path().join("0.jnl")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        fs::write(dir.path().join("other"), vec![1; 1 << 20]).unwrap();
        assert!(occupied_bytes(dir.path(), "jnl").unwrap() < 1 << 20);
    }
}
