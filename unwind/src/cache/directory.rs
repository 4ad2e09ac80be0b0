//! The directory that a cache keeps its files in: who may write to it, and files that appear
//! complete or not at all.
//!
//! It is opened once and everything happens relative to that, so that nobody can exchange it
//! for another one after it was checked.

use std::collections::hash_map::RandomState;
use std::fs::{DirBuilder, File};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, fstat, futimens,
    open, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::CacheError;
use super::key::is_file_name;

const TEMPORARY_SUFFIX: &str = ".unwind.tmp";

/// A temporary file of this age is nobody's any more: writing one takes milliseconds.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
}

/// A file of the cache.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) len: u64,
    /// When it was last used: seconds and nanoseconds.
    pub(super) used: (i64, u64),
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Open { path: path.to_path_buf(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let stat = fstat(&fd).map_err(|error| failed(error.into()))?;
        let is_ours = stat.st_uid == rustix::process::geteuid().as_raw() || stat.st_uid == 0;
        if !is_ours || stat.st_mode & 0o022 != 0 {
            return Err(CacheError::Writable {
                path: path.to_path_buf(),
                owner: stat.st_uid,
                mode: stat.st_mode & 0o7777,
            });
        }
        Ok(Self { fd })
    }

    /// `None` if there is none of this name.
    pub(super) fn open_file(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes that a file was used.
    pub(super) fn touch(&self, file: &File) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // Without it (a read-only disk) the order of deletion is another one.
        let _ = futimens(file, &Timestamps { last_access: now, last_modification: now });
    }

    /// Writes a file and gives it its name when it is complete, or leaves nothing behind.
    pub(super) fn write_file(
        &self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        // Process ids are not enough: agents in several containers can share a directory.
        let random = RandomState::new().build_hasher().finish();
        let temporary = format!("{random:016x}{TEMPORARY_SUFFIX}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = openat(&self.fd, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = BufWriter::new(File::from(fd));
        let written = content(&mut file)
            .and_then(|()| file.flush())
            .and_then(|()| Ok(renameat(&self.fd, &temporary, &self.fd, name)?));
        if written.is_err() {
            // The write's error is the one to report.
            let _ = unlinkat(&self.fd, &temporary, AtFlags::empty());
        }
        written
    }

    /// Deletes a file and returns its length, if it was there.
    pub(super) fn remove(&self, name: &str) -> Option<u64> {
        let len = self.stat(name).map(|stat| len(&stat));
        unlinkat(&self.fd, name, AtFlags::empty()).ok()?;
        len
    }

    /// The cache's files; what cannot be listed is not there.
    pub(super) fn list(&self) -> Vec<Listed> {
        let mut files = Vec::new();
        self.each_file(|name, stat| {
            if is_file_name(name) {
                let used = (stat.st_mtime, stat.st_mtime_nsec);
                files.push(Listed { name: name.to_owned(), len: len(stat), used });
            }
        });
        files
    }

    /// Deletes what agents that died while writing have left.
    pub(super) fn remove_leftovers(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let oldest = now.saturating_sub(LEFTOVER_AGE).as_secs();
        let mut leftovers = Vec::new();
        self.each_file(|name, stat| {
            if name.ends_with(TEMPORARY_SUFFIX) && (stat.st_mtime as u64) < oldest {
                leftovers.push(name.to_owned());
            }
        });
        for name in leftovers {
            self.remove(&name);
        }
    }

    fn each_file(&self, mut visit: impl FnMut(&str, &Stat)) {
        let Ok(entries) = Dir::read_from(&self.fd) else { return };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().to_str() else { continue };
            if let Some(stat) = self.stat(name) {
                visit(name, &stat);
            }
        }
    }

    /// Of a regular file.
    fn stat(&self, name: &str) -> Option<Stat> {
        let stat = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(stat)
    }
}

fn len(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}
