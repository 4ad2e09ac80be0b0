//! Why a collector does not work.

use std::io;

use thiserror::Error;

use super::bpf::BpfError;
use super::cpu::CpuError;
use super::sideband::SidebandError;
use super::uprobes::UprobeError;
use crate::unwind::{UnwindError, UnwinderEnded};

/// Why nothing can be collected.
#[derive(Debug, Error)]
pub enum CollectError {
    /// The BPF programs do not run.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// CPUs cannot be sampled.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// Processes cannot be followed.
    #[error(transparent)]
    Sideband(#[from] SidebandError),
    /// Functions of programs cannot be probed.
    #[error(transparent)]
    Uprobe(#[from] UprobeError),
    /// Stacks cannot be walked.
    #[error(transparent)]
    Unwind(#[from] UnwindError),
    /// Stacks cannot be walked any more.
    #[error(transparent)]
    UnwinderEnded(#[from] UnwinderEnded),
    /// The list of CPUs cannot be read.
    #[error("cannot read the list of cpus from {path}")]
    OnlineCpus {
        /// Where it should be.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// BPF knows processes by their ids in the initial namespace, perf and /proc by those of
    /// ours.
    #[error(
        "this process runs in a pid namespace of its own, where it cannot tell which process \
         a sample is from; share the host's (`--pid=host`, `hostPID: true`)"
    )]
    PidNamespace,
    /// Waiting for the kernel failed.
    #[error("cannot wait for events")]
    Wait {
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}
