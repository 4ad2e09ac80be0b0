//! One spooled batch on disk: how its file is named, laid out and checked.
//!
//! A file is written under a temporary name and renamed, so a file with its final name
//! is complete as far as the agent is concerned. It is not flushed to the disk: a batch
//! survives the agent's death, but after a crash of the host a file can be torn. The
//! checksum is there to notice that, and a torn window is a smaller loss than an agent
//! that forces the disk of every host to flush every ten seconds.
//!
//! Layout, little-endian: magic `EFSP`, version (u32), payload length (u64), CRC-32 of
//! the payload (u32), payload (an encoded `everflame.v1.Batch`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use everflame_proto::v1::Batch;
use prost::Message;
use prost::bytes::{Buf, Bytes};

use super::BatchId;

const MAGIC: [u8; 4] = *b"EFSP";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 20;
const SUFFIX: &str = ".batch";
const TEMPORARY_SUFFIX: &str = ".batch.tmp";
const BAD_SUFFIX: &str = ".bad";

/// Names a spooled batch. The order of names, as values and as file names, is the
/// order in which the batches were spooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SpoolName {
    /// When the batch was spooled, in nanoseconds since the Unix epoch; never less than
    /// that of an older name, even if the clock was set back.
    pub(super) unix_ns: u64,
    /// Orders names of the same nanosecond.
    pub(super) sequence: u32,
    /// The batch in the file.
    pub(super) batch_id: BatchId,
}

/// What a file in the spool directory is, judged by its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileRole {
    Batch(SpoolName),
    /// Left by an agent that died while it was writing.
    Temporary,
    /// A damaged batch that was set aside.
    Bad(SpoolName),
    /// Not ours; left alone.
    Foreign,
}

impl SpoolName {
    /// The first name after `self` that is not in the past of `now_unix_ns`.
    pub(super) fn next(newest: Option<Self>, now_unix_ns: u64, batch_id: BatchId) -> Self {
        match newest {
            Some(newest) if newest.unix_ns >= now_unix_ns => match newest.sequence.checked_add(1) {
                Some(sequence) => Self { unix_ns: newest.unix_ns, sequence, batch_id },
                None => Self { unix_ns: newest.unix_ns + 1, sequence: 0, batch_id },
            },
            _ => Self { unix_ns: now_unix_ns, sequence: 0, batch_id },
        }
    }

    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(self.stem() + SUFFIX)
    }

    /// Where its file goes when it is damaged.
    pub(super) fn bad_path(&self, dir: &Path) -> PathBuf {
        dir.join(self.stem() + BAD_SUFFIX)
    }

    fn temporary_path(&self, dir: &Path) -> PathBuf {
        dir.join(self.stem() + TEMPORARY_SUFFIX)
    }

    fn stem(&self) -> String {
        format!("{:020}-{:010}-{}", self.unix_ns, self.sequence, self.batch_id.simple())
    }

    fn parse(stem: &str) -> Option<Self> {
        let (unix_ns, rest) = stem.split_once('-')?;
        let (sequence, batch_id) = rest.split_once('-')?;
        let name = Self {
            unix_ns: unix_ns.parse().ok()?,
            sequence: sequence.parse().ok()?,
            batch_id: BatchId::try_parse(batch_id).ok()?,
        };
        // Only what we would have written is ours; this refuses short numbers, signs
        // and other spellings of a UUID.
        (name.stem() == stem).then_some(name)
    }
}

impl FileRole {
    pub(super) fn of(file_name: &str) -> Self {
        let ours = |suffix| file_name.strip_suffix(suffix).and_then(SpoolName::parse);
        if let Some(name) = ours(SUFFIX) {
            Self::Batch(name)
        } else if ours(TEMPORARY_SUFFIX).is_some() {
            Self::Temporary
        } else if let Some(name) = ours(BAD_SUFFIX) {
            Self::Bad(name)
        } else {
            Self::Foreign
        }
    }
}

/// Why a spooled batch cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolFileError {
    #[error("cannot read spool file {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write spool file {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("spool file {path} is torn: it has {actual} bytes, its header says {expected}")]
    Torn { path: PathBuf, expected: u64, actual: u64 },
    #[error("spool file {path} is not a batch of version {VERSION}")]
    Unknown { path: PathBuf },
    #[error("spool file {path} is corrupt: its checksum does not match")]
    Checksum { path: PathBuf },
    #[error("spool file {path} does not hold a batch")]
    Decode { path: PathBuf, source: prost::DecodeError },
}

/// The content of a spool file for `batch`.
pub(super) fn encode(batch: &Batch) -> Bytes {
    let payload = batch.encode_to_vec();
    let mut file = Vec::with_capacity(HEADER_LEN + payload.len());
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&VERSION.to_le_bytes());
    file.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    file.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    file.extend_from_slice(&payload);
    file.into()
}

/// The batch in the content of a spool file; `path` is for messages.
pub(super) fn decode(mut file: Bytes, path: &Path) -> Result<Batch, SpoolFileError> {
    let path = || path.to_path_buf();
    let actual = file.len() as u64;
    if file.len() < HEADER_LEN {
        return Err(SpoolFileError::Torn { path: path(), expected: HEADER_LEN as u64, actual });
    }
    let mut header = file.split_to(HEADER_LEN);
    let mut magic = [0; MAGIC.len()];
    header.copy_to_slice(&mut magic);
    if magic != MAGIC || header.get_u32_le() != VERSION {
        return Err(SpoolFileError::Unknown { path: path() });
    }
    let payload_len = header.get_u64_le();
    if payload_len != file.len() as u64 {
        let expected = payload_len.saturating_add(HEADER_LEN as u64);
        return Err(SpoolFileError::Torn { path: path(), expected, actual });
    }
    if header.get_u32_le() != crc32fast::hash(&file) {
        return Err(SpoolFileError::Checksum { path: path() });
    }
    Batch::decode(file).map_err(|source| SpoolFileError::Decode { path: path(), source })
}

/// Reads and checks the batch called `name`.
pub(super) fn read(dir: &Path, name: &SpoolName) -> Result<Batch, SpoolFileError> {
    let path = name.path(dir);
    match fs::read(&path) {
        Ok(content) => decode(content.into(), &path),
        Err(source) => Err(SpoolFileError::Read { path, source }),
    }
}

/// Writes `content` under its final name, or leaves nothing behind.
pub(super) fn write(dir: &Path, name: &SpoolName, content: &[u8]) -> Result<(), SpoolFileError> {
    let temporary = name.temporary_path(dir);
    fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, name.path(dir))).map_err(
        |source| {
            // The write's error is the one to report; a leftover is removed at the next start.
            let _ = fs::remove_file(&temporary);
            SpoolFileError::Write { path: name.path(dir), source }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        Batch { batch_id: vec![7; 16], host: "a".into(), ..Batch::default() }
    }

    fn check_refused(change: impl FnOnce(&mut Vec<u8>), expected: &str) {
        let mut file = encode(&batch()).to_vec();
        change(&mut file);
        let error = decode(file.into(), Path::new("x")).expect_err("a damaged file is refused");
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn a_batch_survives_encoding() {
        assert_eq!(decode(encode(&batch()), Path::new("x")).expect("intact"), batch());
    }

    #[test]
    fn damage_is_noticed() {
        check_refused(|file| file.truncate(0), "torn");
        check_refused(|file| file.truncate(10), "torn");
        check_refused(|file| file.truncate(25), "torn");
        check_refused(|file| file.push(0), "torn");
        check_refused(|file| file[0] ^= 1, "not a batch");
        check_refused(|file| file[4] = 9, "version 1");
        check_refused(|file| file[20] ^= 1, "checksum");
        check_refused(|file| file[8..16].fill(0xff), "torn");
    }

    #[test]
    fn names_keep_their_order_when_the_clock_goes_back() {
        let id = BatchId::now_v7();
        let first = SpoolName::next(None, 1_000, id);
        let second = SpoolName::next(Some(first), 10, id);
        let third = SpoolName::next(Some(second), 1_000, id);
        let fourth = SpoolName::next(Some(third), 1_001, id);
        assert!(first < second && second < third && third < fourth);
        assert!(first.stem() < second.stem() && third.stem() < fourth.stem());
    }

    #[test]
    fn only_names_that_the_agent_writes_are_its_own() {
        let name = SpoolName { unix_ns: 5, sequence: 3, batch_id: BatchId::now_v7() };
        let stem = name.stem();
        assert_eq!(FileRole::of(&format!("{stem}.batch")), FileRole::Batch(name));
        assert_eq!(FileRole::of(&format!("{stem}.batch.tmp")), FileRole::Temporary);
        assert_eq!(FileRole::of(&format!("{stem}.bad")), FileRole::Bad(name));
        for foreign in ["lock", "notes.batch", "5-3-x.batch", "a.tmp", ".batch", &stem] {
            assert_eq!(FileRole::of(foreign), FileRole::Foreign, "{foreign}");
        }
    }
}
