//! Why the programs are not running.

use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use thiserror::Error;

use super::KERNEL_BTF;
use crate::kernel::BtfError;

/// Why the programs are not running.
#[derive(Debug, Error)]
pub enum BpfError {
    /// The kernel has no type information.
    #[error(
        "the kernel has no BTF at {KERNEL_BTF}: everflame needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y (the default of all major distributions since 2021)"
    )]
    NoBtf,
    /// The kernel does not let this process use BPF.
    #[error(
        "BPF is not permitted: run as root, or with CAP_BPF and CAP_PERFMON (in a container, \
         add these capabilities and allow the bpf system call in the seccomp profile)"
    )]
    NotPermitted {
        /// What the kernel answered.
        #[source]
        source: EbpfError,
    },
    /// The object was refused as a whole.
    #[error("cannot load the BPF object")]
    Object {
        /// What aya or the kernel says.
        #[source]
        source: EbpfError,
    },
    /// A feature is missing for which there is no substitute.
    #[error(transparent)]
    Feature(#[from] crate::kernel::MissingFeature),
    /// It cannot be found out where the kernel keeps something.
    #[error("cannot find where this kernel keeps what the programs read")]
    Layout(#[from] BtfError),
    /// The kernel's types cannot be read.
    #[error("cannot read the kernel's types")]
    Types {
        /// What aya says.
        #[source]
        source: aya::BtfError,
    },
    /// Waits that go on cannot be listed.
    #[error("cannot list the tasks that wait")]
    Iterate {
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The iterator over tasks cannot be opened.
    #[error("cannot open the iterator over tasks")]
    Link {
        /// What the kernel says.
        #[source]
        source: aya::programs::links::LinkError,
    },
    /// One program was refused.
    #[error("the kernel refuses the BPF program `{program}`")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the kernel's verifier says.
        #[source]
        source: ProgramError,
    },
    /// The kernel runs only what is made for the oldest ones.
    #[error("{what} cannot be seen: the kernel is older than Linux 5.17")]
    TooOld {
        /// What was asked for.
        what: &'static str,
    },
    /// The object lacks something that this agent expects; the two do not belong together.
    #[error("the BPF object has no `{name}`: it was not built with this agent")]
    Missing {
        /// A program or a map.
        name: &'static str,
    },
    /// The programs' debug output cannot be read.
    #[cfg(feature = "debug-log")]
    #[error("cannot read the debug output of the BPF programs")]
    Log {
        /// What aya says.
        #[source]
        source: aya_log::Error,
    },
    /// A map could not be opened.
    #[error("cannot use the BPF map `{map}`")]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel says.
        #[source]
        source: MapError,
    },
}
