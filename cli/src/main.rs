//! The everflame command line: what people type.
//!
//! One module per command in [`command`]; the others are what commands share: where
//! profiles come from ([`files`], [`collector`]), what is asked for ([`args`],
//! [`when`]), and what comes out ([`output`], [`table`], [`units`], [`svg`]). This file
//! only turns arguments into a command and its result into an exit code.
#![forbid(unsafe_code)]

mod args;
mod collector;
mod command;
mod failure;
mod files;
mod format;
mod output;
mod svg;
mod table;
mod units;
mod when;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::{ExitStatus, Failure};

fn main() -> ExitCode {
    let outcome = match Cli::try_parse() {
        Ok(cli) => command::run(cli.command),
        Err(error) => return failure::report_usage(&error),
    };
    match outcome {
        Ok(()) => ExitStatus::Success.into(),
        // The reader has seen enough; there is nobody to tell.
        Err(Failure::Output(output::OutputError::Closed)) => ExitStatus::Success.into(),
        Err(failure) => {
            failure::report(&failure);
            failure.exit_status().into()
        }
    }
}
