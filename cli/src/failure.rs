//! How a command ends: what is said on stderr, and the exit code.
//!
//! Scripts rely on the codes: 0 success, 1 a failed check, 2 not enough data, and from 64
//! on those of sysexits.h.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use everflame_profile::{DiffError, MergeError, SelectError};

use crate::collector::CollectorError;
use crate::command::record::RecordError;
use crate::files::FileError;
use crate::output::OutputError;
use crate::svg::SvgError;

/// What the exit code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitStatus {
    Success = 0,
    /// What was to be checked is not as it should be.
    CheckFailed = 1,
    /// There is no data, or too little to say anything.
    NoData = 2,
    /// EX_USAGE
    Usage = 64,
    /// EX_DATAERR
    BadData = 65,
    /// EX_NOINPUT
    NoInput = 66,
    /// EX_UNAVAILABLE
    Unavailable = 69,
    /// EX_SOFTWARE
    Internal = 70,
    /// EX_IOERR
    Io = 74,
    /// EX_TEMPFAIL
    TryAgain = 75,
    /// EX_NOPERM
    Permission = 77,
}

impl ExitStatus {
    /// For an operation on a file: `missing` when there is none.
    pub(crate) fn of_io(error: &io::Error, missing: Self) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => missing,
            io::ErrorKind::PermissionDenied => Self::Permission,
            _ => Self::Io,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status as u8)
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{message}")]
    Usage { message: String },
    #[error("{message}")]
    NoData { message: String },
    #[error("{message}")]
    CheckFailed { message: String },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Collector(#[from] CollectorError),
    #[error(transparent)]
    SampleType(#[from] SelectError),
    #[error(transparent)]
    Diff(#[from] DiffError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Svg(#[from] SvgError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into() }
    }

    pub(crate) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Usage { .. } | Self::SampleType(_) => ExitStatus::Usage,
            Self::NoData { .. } => ExitStatus::NoData,
            Self::CheckFailed { .. } => ExitStatus::CheckFailed,
            Self::File(error) => error.exit_status(),
            Self::Collector(error) => error.exit_status(),
            Self::Diff(_) | Self::Merge(_) => ExitStatus::BadData,
            Self::Output(error) => error.exit_status(),
            Self::Svg(_) => ExitStatus::Internal,
            Self::Record(error) => error.exit_status(),
        }
    }

    /// What to do about it, where the message does not say so itself.
    fn way_out(&self) -> Option<&'static str> {
        match self {
            Self::Collector(error) => error.way_out(),
            Self::Record(error) => error.way_out(),
            _ => None,
        }
    }
}

/// Says on stderr what went wrong: the error, its causes, and the way out.
pub(crate) fn report(failure: &Failure) {
    let mut message = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Libraries repeat their causes in their own message; once is enough.
        if !message.contains(&text) {
            let _ = write!(message, ": {text}");
        }
        cause = error.source();
    }
    if let Some(way_out) = failure.way_out() {
        let _ = write!(message, "\n  {way_out}");
    }
    say(&message);
}

/// A line on stderr that begins with the name of the program.
pub(crate) fn say(message: &str) {
    // If stderr is closed there is no one left to say it to.
    let _ = writeln!(io::stderr(), "everflame: {message}");
}

/// Prints help and version as they are, usage errors as ours.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed pipe is fine: the reader has seen enough.
        let _ = error.print();
        return ExitStatus::Success.into();
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitStatus::Usage.into();
    }
    let text = error.render().to_string();
    say(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
    ExitStatus::Usage.into()
}
