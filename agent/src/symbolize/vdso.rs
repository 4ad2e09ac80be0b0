//! The vDSO: code that the kernel maps into every process, with its symbols. The image is
//! the same in all (64-bit) processes, so the agent's own is read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::MemfdFlags;
use thiserror::Error;

/// Why there is no vDSO to read.
#[derive(Debug, Error)]
pub(crate) enum VdsoError {
    #[error("this process has no vDSO; was the kernel started with vdso=0?")]
    Missing,
    #[error("cannot read the vDSO of this process")]
    Io(#[from] io::Error),
}

/// Real ones have 4 to 12 KiB.
const MAX_BYTES: usize = 1 << 20;

/// The image, as a file.
pub(crate) fn read() -> Result<File, VdsoError> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let (start, end) = maps.lines().find_map(vdso_range).ok_or(VdsoError::Missing)?;
    let len = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
    let mut image = vec![0; len.min(MAX_BYTES)];
    // By way of the kernel: no pointer to check.
    File::open("/proc/self/mem")?.read_exact_at(&mut image, start)?;
    let memory = rustix::fs::memfd_create("everflame-vdso", MemfdFlags::CLOEXEC);
    let mut file = File::from(memory.map_err(io::Error::from)?);
    file.write_all(&image)?;
    Ok(file)
}

fn vdso_range(line: &str) -> Option<(u64, u64)> {
    let range = line.strip_suffix("[vdso]")?.split(' ').next()?;
    let (start, end) = range.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}
