//! Compiles call frame information of ELF files into the pages that stacks are walked with.
//!
//! `.eh_frame` says for each instruction of a file how to find the caller's frame, as programs
//! for a small machine (DWARF 5, section 6.4; LSB 5.0, chapter 10). [`compile`] runs these
//! programs once per file and keeps the result, sorted and without repetition, in the format
//! of [`everflame_agent_common::unwind::page`], which BPF programs search.
//!
//! The way of a file through the modules:
//!
//! - `read_at` reads it, without ever mapping it; `elf` finds code and sections;
//! - `frames` walks over a section's entries, `entries` reads them with gimli;
//! - `extents` sorts functions by the code that they cover;
//! - `program` runs a function's program, `rules` packs each of its rows;
//! - `rows` does so for function after function and fills the gaps, with what `linkage`
//!   knows of procedure linkage tables;
//! - `pages` packs rows into the pages of a [`Table`], which [`cache`] keeps on disk.
//!
//! Files are anyone's: every size and all work is bounded by [`Limits`], nothing panics, and
//! what is damaged is an error or counted.
#![forbid(unsafe_code)]

pub mod cache;
mod compile;
mod display;
mod elf;
mod entries;
mod error;
mod extents;
mod frames;
mod limits;
mod linkage;
mod pages;
mod program;
mod read_at;
mod rows;
mod rules;
mod segments;
mod stats;
mod table;

pub use self::compile::compile;
pub use self::display::InWords;
pub use self::elf::Arch;
pub use self::error::CompileError;
pub use self::limits::Limits;
pub use self::read_at::ReadAt;
pub use self::rules::Cause;
pub use self::stats::{Source, TableStats};
pub use self::table::{Page, Shard, Table};
