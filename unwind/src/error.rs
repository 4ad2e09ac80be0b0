//! Why a file has no unwind table at all. What concerns single functions is counted in
//! [`crate::TableStats`] instead.

use std::io;

use thiserror::Error;

/// Why a file cannot be compiled.
#[derive(Debug, Error)]
pub enum CompileError {
    /// The file is shorter than its headers say, or cannot be read.
    #[error("cannot read {len} bytes at offset {offset:#x}; has the file been truncated?")]
    Read {
        /// Where in the file.
        offset: u64,
        /// How many bytes were asked for.
        len: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Not ELF, or an ELF file of another word size or byte order.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf64,
    /// Neither x86_64 nor aarch64.
    #[error("machine {machine} is not supported; x86_64 (62) and aarch64 (183) are")]
    UnsupportedMachine {
        /// `e_machine`.
        machine: u16,
    },
    /// Not an executable or a shared library: nothing maps it as code.
    #[error("ELF type {kind} is neither an executable nor a shared library")]
    UnsupportedType {
        /// `e_type`.
        kind: u16,
    },
    /// Headers contradict each other.
    #[error("malformed {what}")]
    Malformed {
        /// What is malformed.
        what: &'static str,
    },
    /// More of something than [`crate::Limits`] allow.
    #[error("{what}: {found}, more than the limit of {limit}")]
    TooLarge {
        /// What there is too much of, with its unit.
        what: &'static str,
        /// How much there is, or how much was seen before giving up.
        found: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// A section is compressed in a way that is not understood.
    #[error("cannot decompress section `{section}`")]
    Decompress {
        /// The section's name.
        section: &'static str,
        /// What the decompressor said.
        source: io::Error,
    },
    /// No segment of the file is executable.
    #[error("the file has no executable segment")]
    NoCode,
}
