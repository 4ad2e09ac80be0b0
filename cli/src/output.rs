//! Where results go: stdout, or a file that appears only when it is complete.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::failure::ExitStatus;

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// Whoever read stdout has gone away: no error, but no reason to go on either.
    #[error("stdout was closed")]
    Closed,
    #[error("cannot write to stdout")]
    Stdout {
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "a pprof profile is binary and stdout is a terminal; write it to a file with -o FILE.pb.gz"
    )]
    Terminal,
}

impl OutputError {
    pub(crate) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Closed => ExitStatus::Success,
            Self::Stdout { .. } => ExitStatus::Io,
            Self::File { source, .. } => ExitStatus::of_io(source, ExitStatus::Io),
            Self::Terminal => ExitStatus::Usage,
        }
    }
}

/// A place for one result. Making it fails early where writing would fail later.
#[derive(Debug)]
pub(crate) enum Destination {
    Stdout,
    /// A regular file: what is written replaces it at once, when all of it is there.
    Replace {
        path: PathBuf,
        partial: tempfile::NamedTempFile,
    },
    /// A device or a pipe.
    Through {
        path: PathBuf,
        file: File,
    },
}

impl Destination {
    /// The file of that name, or stdout for none or `-`.
    pub(crate) fn new(path: Option<&Path>, is_binary: bool) -> Result<Self, OutputError> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return if is_binary && io::stdout().is_terminal() {
                Err(OutputError::Terminal)
            } else {
                Ok(Self::Stdout)
            };
        };
        Self::file(path).map_err(|source| OutputError::File { path: path.to_owned(), source })
    }

    fn file(path: &Path) -> io::Result<Self> {
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(path)?;
                return Ok(Self::Through { path: path.to_owned(), file });
            }
            _ => {}
        }
        // Where a link leads, or the link itself would be replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let dir = match path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let partial = tempfile::Builder::new()
            .prefix(".everflame-")
            // Less the umask, as any new file.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)?;
        Ok(Self::Replace { path, partial })
    }

    pub(crate) fn write(self, bytes: &[u8]) -> Result<(), OutputError> {
        match self {
            Self::Stdout => stdout(bytes),
            Self::Replace { path, mut partial } => partial
                .write_all(bytes)
                .and_then(|()| partial.persist(&path).map_err(io::Error::from).map(drop))
                .map_err(|source| OutputError::File { path, source }),
            Self::Through { path, mut file } => {
                file.write_all(bytes).map_err(|source| OutputError::File { path, source })
            }
        }
    }
}

fn stdout(bytes: &[u8]) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|source| match source.kind() {
        io::ErrorKind::BrokenPipe => OutputError::Closed,
        _ => OutputError::Stdout { source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        std::fs::write(&path, "old").unwrap();
        drop(Destination::new(Some(&path), false).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        Destination::new(Some(&path), false).unwrap().write(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn links_stay_links() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        Destination::new(Some(&link), false).unwrap().write(b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn missing_directory_is_known_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("none/out.json"), dir.path().to_owned()] {
            let error = Destination::new(Some(&path), true).unwrap_err();
            assert_eq!(error.exit_status(), ExitStatus::Io, "{error}");
        }
    }

    #[test]
    fn devices_are_written_through() {
        Destination::new(Some(Path::new("/dev/null")), true).unwrap().write(b"x").unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
