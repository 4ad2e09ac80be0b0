//! Probes on instructions of programs and libraries (uprobes).
//!
//! A [`UprobeProgram`] is attached to places in a file, for one process or for all that map it, and
//! stays so until the [`Uprobes`] that came of it are dropped. The kernel keeps probes by inode, so a
//! file of a container is named by way of a process that has it: /proc/PID/map_files or
//! /proc/PID/root.
//!
//! Where the kernel has it (Linux 6.6, sound since 6.10), one link holds all places of a file: attached
//! and detached at once. Otherwise each place is a perf event.

mod program;
mod sys;

use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub(super) use program::{UprobeForm, UprobeProgram};

/// A place to attach to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Of the instruction, in the file.
    pub offset: u64,
    /// Of a `u16` in the file that the kernel counts up in each process while the probe is there
    /// (a "semaphore", as USDT probes have); must lie in writable memory.
    pub ref_ctr_offset: Option<u64>,
    /// What the program is told by `bpf_get_attach_cookie`.
    pub cookie: u64,
}

/// Why there are no probes.
#[derive(Debug, Error)]
pub enum UprobeError {
    /// The kernel does not attach them.
    #[error("cannot probe {file} in {}: {}", whom(*.pid), way_out(.source))]
    Attach {
        /// Where.
        file: PathBuf,
        /// In which process; `None` is all.
        pid: Option<u32>,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A path that the kernel cannot be told.
    #[error("cannot probe {file}: no path has a zero byte")]
    Path {
        /// The path.
        file: PathBuf,
        /// Where the byte is.
        #[source]
        source: NulError,
    },
    /// The kernel has no uprobes, or sysfs is not mounted.
    #[error(
        "cannot find out how this kernel is asked for uprobes: {path} cannot be read; a kernel with \
         CONFIG_UPROBE_EVENTS=y has it, where sysfs is mounted"
    )]
    NoUprobes {
        /// What was looked for.
        path: &'static str,
        /// Why it was not found.
        #[source]
        source: io::Error,
    },
}

impl UprobeError {
    /// Whether the process is gone, or has unmapped the file: no fault of anybody's.
    pub fn is_gone(&self) -> bool {
        let Self::Attach { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
    }
}

fn whom(pid: Option<u32>) -> String {
    pid.map_or_else(|| "all processes".to_owned(), |pid| format!("process {pid}"))
}

fn way_out(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "run as root, or with CAP_BPF and CAP_PERFMON",
        Some(libc::ESRCH | libc::ENOENT) => "it is gone",
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (ulimit -n)",
        Some(libc::EOPNOTSUPP) => "there is an instruction that cannot be probed",
        _ => "the kernel refuses it",
    }
}

/// Probes that are attached. Dropping them detaches, and waits until no program runs any more.
#[derive(Debug)]
pub struct Uprobes {
    /// Links go before the perf events that some of them hold.
    links: Vec<OwnedFd>,
    events: Vec<OwnedFd>,
}

impl Uprobes {
    /// How many objects of the kernel hold them.
    pub fn links(&self) -> usize {
        self.links.len()
    }
}

impl UprobeProgram {
    /// Attaches the program to places in a file: in a process, whatever its threads do, or in all
    /// that map the file now or later. All of them, or none.
    pub(super) fn attach(
        &self,
        file: &Path,
        sites: &[Site],
        pid: Option<u32>,
    ) -> Result<Uprobes, UprobeError> {
        let path = CString::new(file.as_os_str().as_bytes())
            .map_err(|source| UprobeError::Path { file: file.to_owned(), source })?;
        let failed = |source| UprobeError::Attach { file: file.to_owned(), pid, source };
        match self.form() {
            UprobeForm::Multi => {
                let link = sys::link_all(self.fd(), &path, sites, pid).map_err(failed)?;
                Ok(Uprobes { links: vec![link], events: Vec::new() })
            }
            UprobeForm::PerfEvents => {
                let kind = pmu_type()?;
                let mut uprobes = Uprobes { links: Vec::new(), events: Vec::new() };
                for site in sites {
                    let event = sys::open_event(kind, &path, site, pid).map_err(failed)?;
                    let link = sys::link_event(self.fd(), event.as_fd(), site.cookie);
                    uprobes.links.push(link.map_err(failed)?);
                    uprobes.events.push(event);
                }
                Ok(uprobes)
            }
        }
    }
}

/// The number by which perf knows uprobes.
fn pmu_type() -> Result<u32, UprobeError> {
    const PATH: &str = "/sys/bus/event_source/devices/uprobe/type";
    let failed = |source| UprobeError::NoUprobes { path: PATH, source };
    let text = std::fs::read_to_string(PATH).map_err(failed)?;
    text.trim().parse().map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

#[cfg(test)]
mod tests;
