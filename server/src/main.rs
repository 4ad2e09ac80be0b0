//! `everflame-server`: reads the configuration, starts the collector, stops it.
#![forbid(unsafe_code)]

use std::{
    io::{IsTerminal as _, stderr},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser as _, error::ErrorKind};
use everflame_server::{
    config::Config,
    serve::{ServeError, serve},
    store::StoreError,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

// Exit codes of sysexits.h.
const EX_USAGE: u8 = 64;
const EX_UNAVAILABLE: u8 = 69;
const EX_OSERR: u8 = 71;
const EX_IOERR: u8 = 74;
const EX_TEMPFAIL: u8 = 75;

fn main() -> ExitCode {
    let config = match Config::try_parse() {
        Ok(config) => config,
        Err(err) => {
            let asked_for =
                matches!(err.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nobody is left to tell when this fails.
            let _ = err.print();
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(EX_USAGE) };
        }
    };
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(err) => return fail(&anyhow::Error::new(err).context("cannot read --log"), EX_USAGE),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            let code = exit_code(&err);
            fail(&err, code)
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let stop = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        serve(config, stop).await.map_err(anyhow::Error::from)
    });
    // A query that is still running has nobody to answer.
    runtime.shutdown_background();
    result
}

fn exit_code(err: &anyhow::Error) -> u8 {
    match err.downcast_ref::<ServeError>() {
        Some(ServeError::Store(StoreError::Locked { .. })) => EX_TEMPFAIL,
        Some(ServeError::Store(_)) => EX_IOERR,
        Some(ServeError::Listen { .. }) => EX_UNAVAILABLE,
        _ => EX_OSERR,
    }
}

#[expect(clippy::print_stderr, reason = "this is how a command says why it failed")]
fn fail(err: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("everflame-server: {err:#}");
    ExitCode::from(code)
}
