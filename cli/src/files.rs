//! Profiles from files, whatever tool wrote them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use everflame_profile::pprof::Profile;
use everflame_profile::{DecodeError, DecodeLimits, MergeError, Merger, decode};

use crate::failure::ExitStatus;

/// More than the collector takes: whoever names a file wants it read.
pub(crate) const LIMITS: DecodeLimits =
    DecodeLimits { max_compressed_bytes: 256 << 20, max_decompressed_bytes: 1 << 30 };

/// Why a file did not give a profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot use {path}")]
    Decode {
        path: String,
        #[source]
        source: DecodeError,
    },
    #[error("cannot add {path} to the files before it")]
    Merge {
        path: String,
        #[source]
        source: MergeError,
    },
}

impl FileError {
    pub(crate) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Read { source, .. } => ExitStatus::of_io(source, ExitStatus::NoInput),
            Self::Decode { .. } | Self::Merge { .. } => ExitStatus::BadData,
        }
    }
}

/// Reads a profile; `-` is stdin.
pub(crate) fn read(path: &Path) -> Result<Profile, FileError> {
    let name = || path.display().to_string();
    let bytes = read_bytes(path).map_err(|source| FileError::Read { path: name(), source })?;
    decode(&bytes, &LIMITS).map_err(|source| FileError::Decode { path: name(), source })
}

/// Reads profiles and sums them.
pub(crate) fn read_all(paths: &[PathBuf]) -> Result<Profile, FileError> {
    if let [path] = paths {
        return read(path);
    }
    let mut merger = Merger::new();
    for path in paths {
        merger
            .add(&read(path)?)
            .map_err(|source| FileError::Merge { path: path.display().to_string(), source })?;
    }
    Ok(merger.finish())
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    // One byte more than allowed, for `decode` to say that it is too large.
    let most = u64::try_from(LIMITS.max_compressed_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut bytes)?;
    } else {
        File::open(path)?.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
