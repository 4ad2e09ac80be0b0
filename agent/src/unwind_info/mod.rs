//! `everflame-agent unwind-info FILE`: what the agent knows about a file's stack frames, for
//! finding out why a stack breaks.
//!
//! It compiles the file as the profiling agent does and says what came of it: what the rules
//! come from, what has none and why, and the rows themselves in words, by address and
//! function. Needs no rights beyond reading the file.

mod binary;
mod report;
mod rows;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use everflame_unwind::{CompileError, Limits, compile};
use thiserror::Error;

use crate::cli::ReportFormat;
use binary::Binary;
pub use report::Report;
use rows::{Listing, Selection};

const EXAMPLES: &str = "\
Examples:
  everflame-agent unwind-info /usr/lib/x86_64-linux-gnu/libc.so.6
      statistics and the first rows
  everflame-agent unwind-info /usr/bin/python3 --function _PyEval_EvalFrameDefault
      the rows of one function
  everflame-agent unwind-info /proc/1234/exe --address 0x401136
      the row in force at an address, as `objdump -d` shows it, and its neighbours
  everflame-agent unwind-info app --rows | grep unsupported
      code that has rules which the agent cannot follow

A rule says where the caller's stack pointer (the CFA), its frame pointer and the return
address are: `cfa=rsp+16  rbp=[cfa-16]  ra=[cfa-8]`. Without a file's call frame information
frame pointers are followed. Exit codes: 0 success, 64 usage, 65 not a file that can be
unwound, 66 no such file, or it cannot be read.";

/// What to show of which file.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// An executable or a shared library
    pub file: PathBuf,
    /// Show all rows, not only the first ones
    #[arg(long)]
    pub rows: bool,
    /// Show the rows around this address of the file (hexadecimal)
    #[arg(long, value_name = "ADDR", value_parser = address, conflicts_with = "rows")]
    pub address: Option<u64>,
    /// Show the rows of the functions of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["rows", "address"])]
    pub function: Option<String>,
    /// As what to show it
    #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
    pub format: ReportFormat,
}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|error| format!("{error}; an address looks like 0x401136"))
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum UnwindInfoError {
    /// The file is not there, or not readable.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, a device or the like.
    #[error("{path} is not a file")]
    NotAFile {
        /// What it is not.
        path: PathBuf,
    },
    /// The file is there, but has no code that could be unwound.
    #[error("{path} cannot be unwound")]
    Compile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CompileError,
    },
    /// The headers that tell about addresses and functions are damaged.
    #[error("cannot read the headers of {path}")]
    Headers {
        /// The file.
        path: PathBuf,
        /// Why.
        source: object::read::Error,
    },
    /// No symbol table has the function.
    #[error(
        "no function `{name}` among the {functions} in the symbol tables of {path}; a stripped \
         file keeps only what others call: use --address"
    )]
    NoFunction {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// How many functions have a name.
        functions: usize,
    },
    /// The address is not one of code.
    #[error(
        "{address:#x} lies in no executable part of {path}; those are {code}. Addresses are \
         those of the file, without what it is loaded at"
    )]
    NoCode {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        address: u64,
        /// The addresses of code.
        code: String,
    },
}

impl UnwindInfoError {
    /// Whether the file could not even be read.
    pub fn is_no_input(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::NotAFile { .. })
    }
}

/// Finds out what `args` ask for.
///
/// # Errors
/// See [`UnwindInfoError`].
pub fn run(args: &Args) -> Result<Report, UnwindInfoError> {
    let path = || args.file.clone();
    let file = open(&args.file)?;
    let table = compile(&file, &Limits::default())
        .map_err(|source| UnwindInfoError::Compile { path: path(), source })?;
    let binary =
        Binary::read(file).map_err(|source| UnwindInfoError::Headers { path: path(), source })?;
    let selection = match (&args.function, args.address) {
        (Some(name), _) => {
            let found = binary.functions_named(name);
            if found.is_empty() {
                return Err(UnwindInfoError::NoFunction {
                    path: path(),
                    name: name.clone(),
                    functions: binary.functions(),
                });
            }
            Selection::Ranges(found)
        }
        (None, Some(address)) => match binary.offset_of(address) {
            Some(offset) => Selection::Around(offset),
            None => {
                let code = binary.code_addresses();
                return Err(UnwindInfoError::NoCode { path: path(), address, code });
            }
        },
        (None, None) if args.rows => Selection::All,
        (None, None) => Selection::First,
    };
    let listing = Listing::new(&table, &binary, &selection);
    Ok(Report::new(&args.file, &table, &binary, listing))
}

/// Not by opening first: that waits for the other end of a pipe.
fn open(path: &Path) -> Result<File, UnwindInfoError> {
    let failed = |source| UnwindInfoError::Read { path: path.to_path_buf(), source };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(UnwindInfoError::NotAFile { path: path.to_path_buf() });
    }
    File::open(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal() {
        assert_eq!(address("0x401136"), Ok(0x40_1136));
        assert_eq!(address("401136"), Ok(0x40_1136));
        assert!(address("main").is_err_and(|error| error.contains("looks like 0x401136")));
    }
}
