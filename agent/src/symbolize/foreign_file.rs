//! Files that others control: any user of the host can have this code read a file of
//! their making, and can truncate or overwrite it meanwhile.
//!
//! Nothing foreign is ever memory-mapped: touching a page that has been truncated away
//! kills the process with SIGBUS, and ETXTBSY protects running executables but not the
//! shared libraries that they map. What is needed is copied out with `pread`, which
//! reports a short file as an error.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Opens a file for reading if it is a regular one, without waiting for a writer if it is
/// a FIFO.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = File::from(rustix::fs::openat(CWD, path, read_flags(), Mode::empty())?);
    regular(file)
}

/// Opens a file below `root`, which symbolic links are not followed out of: `/proc/PID/root`
/// does not keep an absolute link from leading to the agent's own files.
pub(super) fn open_within(root: &OwnedFd, path: &Path) -> io::Result<File> {
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(root, path, read_flags(), Mode::empty(), within)?;
    regular(File::from(file))
}

/// Whether `uid` or root wrote the file. In /tmp anybody can write a file about anybody.
pub(super) fn is_by(file: &File, uid: u32) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.uid() == uid || metadata.uid() == 0)
}

fn read_flags() -> OFlags {
    OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// Whether both are the same inode.
pub(super) fn is_same(a: &File, b: &File) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Reads a part of a file without moving the file's position, which others may use.
pub(super) struct FileRange<'f> {
    file: &'f File,
    position: u64,
    end: u64,
}

impl<'f> FileRange<'f> {
    pub(super) fn new(file: &'f File, offset: u64, len: u64) -> Self {
        Self { file, position: offset, end: offset.saturating_add(len) }
    }

    pub(super) fn len(&self) -> u64 {
        self.end - self.position
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }
}

impl Read for FileRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
