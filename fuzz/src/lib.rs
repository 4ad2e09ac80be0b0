//! What the fuzz targets have in common: inputs turned into files, and what must hold for
//! every table.
//!
//! A target fails by a panic, and also by taking longer than a few seconds or more memory
//! than a few hundred MiB: `cargo xtask fuzz` sets these limits.

#![forbid(unsafe_code)]

pub mod image;
mod table;
pub mod torn;

pub use table::{check_table, entry_key};
