//! `everflame-agent`: wires the stages together and stops them in order.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};
use everflame_agent::capabilities::{self, Finding};
use everflame_agent::cli::{Cli, Command, MetricsAddress, RunArgs};
use everflame_agent::export::{ExportConfig, Exporter};
use everflame_agent::health::Health;
use everflame_agent::http::HttpEndpoint;
use everflame_agent::identity::host_name;
use everflame_agent::metrics::Metrics;
use everflame_agent::pipeline::{Pipeline, PipelineConfig};
use everflame_agent::symbolize::SymbolizeConfig;
use everflame_profile::kind::Kind;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// sysexits.h: wrong usage, something needed is unavailable, no permission.
const EX_USAGE: u8 = 64;
const EX_UNAVAILABLE: u8 = 69;
const EX_NOPERM: u8 = 77;

/// How long the last window may take to be delivered.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Without a finished window for this many windows, the agent is not healthy.
const STALE_WINDOWS: u32 = 6;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come as errors too.
            let code = if error.use_stderr() { EX_USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match cli.command {
        Some(Command::Capabilities) => show_capabilities(),
        None => {
            if let Some(kind) = cli.run.kinds.iter().find(|kind| **kind != Kind::Cpu) {
                return usage(&format!(
                    "profiles of kind `{kind}` are not there yet; use --kinds cpu"
                ));
            }
            tracing_subscriber::fmt()
                .with_env_filter(
                    EnvFilter::try_from_env("EVERFLAME_LOG")
                        .unwrap_or_else(|_| EnvFilter::new("info")),
                )
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr)
                .init();
            match run(cli.run) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error:#}");
                    let missing = capabilities::find()
                        .iter()
                        .any(|finding| finding.need.required && !finding.present);
                    ExitCode::from(if missing { EX_NOPERM } else { EX_UNAVAILABLE })
                }
            }
        }
    }
}

fn run(args: RunArgs) -> Result<()> {
    // Before any thread starts, so that no signal is missed.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot handle signals")?;
    let metrics = Arc::new(Metrics::new());
    report_missing(&metrics);
    let health = Arc::new(Health::new(args.window * STALE_WINDOWS));
    let http = match args.metrics {
        MetricsAddress::Off => None,
        MetricsAddress::At(address) => {
            Some(HttpEndpoint::bind(address, Arc::clone(&metrics), Arc::clone(&health))?)
        }
    };
    let mut export = ExportConfig::new(args.server, args.spool_dir);
    export.spool_max_bytes = args.spool_max_bytes;
    let exporter =
        Arc::new(Exporter::spawn(export, Arc::clone(&metrics), Arc::clone(&health), http)?);
    let config = PipelineConfig {
        cpu_rate_hz: args.cpu_rate_hz,
        window: args.window,
        host: host_name(args.host.as_deref()),
        labels: args.labels,
        symbolize: SymbolizeConfig {
            cache_bytes: usize::try_from(args.symbol_cache_bytes).unwrap_or(usize::MAX),
            dwarf_bytes: args.dwarf_bytes,
            debug_dirs: args.debug_dirs,
            ..SymbolizeConfig::default()
        },
    };
    info!(host = config.host, "everflame-agent {}", env!("CARGO_PKG_VERSION"));
    let pipeline = Pipeline::start(config, Arc::clone(&exporter), metrics, health)?;

    if let Some(signal) = signals.forever().next() {
        info!(signal, "stopping");
    }
    pipeline.stop()?;
    if let Some(exporter) = Arc::into_inner(exporter) {
        exporter.shutdown(FLUSH_TIMEOUT);
    }
    Ok(())
}

/// Names what is off for want of a right.
fn report_missing(metrics: &Metrics) {
    for Finding { need, present } in capabilities::find() {
        if !present {
            warn!("{} is missing: {}", need.capability, need.without);
            metrics.set_capability_off(need.gives, &format!("{} is missing", need.capability));
        }
    }
}

fn usage(message: &str) -> ExitCode {
    let error = Cli::command().error(clap::error::ErrorKind::InvalidValue, message);
    let _ = error.print();
    ExitCode::from(EX_USAGE)
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn show_capabilities() -> ExitCode {
    let findings = capabilities::find();
    for Finding { need, present } in &findings {
        let state = match (present, need.required) {
            (true, _) => "yes",
            (false, true) => "NO",
            (false, false) => "no",
        };
        println!("{:<24} {state:<4} {}", need.capability.to_string(), need.gives);
        if !present {
            println!("{:<24}      without it: {}", "", need.without);
        }
    }
    let usable = findings.iter().all(|finding| finding.present || !finding.need.required);
    ExitCode::from(if usable { 0 } else { EX_NOPERM })
}
