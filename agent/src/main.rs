//! `everflame-agent`: wires the stages together and stops them in order.

use std::convert::Infallible;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};
use everflame_agent::capabilities::{self, Finding, NotPermitted, Report};
use everflame_agent::cli::{Cli, Command, MetricsAddress, ReportFormat, RunArgs};
use everflame_agent::collect::{BpfError, CollectError, CpuError};
use everflame_agent::export::{ExportConfig, Exporter};
use everflame_agent::health::Health;
use everflame_agent::http::HttpEndpoint;
use everflame_agent::identity::host_name;
use everflame_agent::kernel::KernelFeatures;
use everflame_agent::lifecycle::{Ending, Lifecycle};
use everflame_agent::metrics::Metrics;
use everflame_agent::pipeline::{Pipeline, PipelineConfig, PipelineError};
use everflame_agent::symbolize::SymbolizeConfig;
use everflame_agent::unwind::UnwindConfig;
use everflame_agent::unwind_info;
use everflame_profile::kind::Kind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, error, info, warn};
use tracing_subscriber::EnvFilter;

/// sysexits.h: wrong usage, a file that cannot be used, one that is not there, something
/// needed is unavailable, a bug, no permission.
const EX_USAGE: u8 = 64;
const EX_DATAERR: u8 = 65;
const EX_NOINPUT: u8 = 66;
const EX_UNAVAILABLE: u8 = 69;
const EX_SOFTWARE: u8 = 70;
const EX_NOPERM: u8 = 77;

/// What is logged.
const LOG_VARIABLE: &str = "EVERFLAME_LOG";

/// How long the agent may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of that the last window may take to be delivered.
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
        Some(Command::Capabilities { format }) => show_capabilities(format),
        Some(Command::UnwindInfo(args)) => show_unwind_info(&args),
        None => {
            if let Err(message) = cli.run.check() {
                return usage(&message);
            }
            let filter = match log_filter() {
                Ok(filter) => filter,
                Err(message) => return usage(&message),
            };
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(std::io::stderr)
                .init();
            if cli.run.alloc_period.is_some() && !cli.run.kinds.contains(&Kind::Alloc) {
                warn!("--alloc-period is of kind alloc, which --kinds does not have: ignored");
            }
            match run(cli.run) {
                Ok(never) => match never {},
                Err(error) => {
                    error!("{error:#}");
                    ExitCode::from(exit_code(&error))
                }
            }
        }
    }
}

/// Or what to say about one that cannot be read.
fn log_filter() -> Result<EnvFilter, String> {
    let text = std::env::var_os(LOG_VARIABLE).unwrap_or_default();
    let text = text.to_string_lossy();
    if text.is_empty() {
        return Ok(EnvFilter::new("info"));
    }
    EnvFilter::builder().parse(&text).map_err(|_cause| {
        format!(
            "`{text}` in {LOG_VARIABLE} is not a log filter; it looks like `debug` or \
             `info,everflame_agent::collect=debug`"
        )
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<NotPermitted>() {
        return EX_NOPERM;
    }
    match error.downcast_ref() {
        // A seccomp profile can refuse what capabilities allow.
        Some(PipelineError::Collect(CollectError::Bpf(BpfError::NotPermitted { .. }))) => EX_NOPERM,
        // The kernel knows what rates it allows.
        Some(PipelineError::Collect(CollectError::Cpu(CpuError::Rate { .. }))) => EX_USAGE,
        _ => EX_UNAVAILABLE,
    }
}

fn run(args: RunArgs) -> Result<Infallible> {
    raise_open_files();
    let metrics = Arc::new(Metrics::new());
    let findings = capabilities::find();
    report_missing(&findings, &metrics);
    // Before the metrics' address and the spool are taken, which an agent that works may want.
    capabilities::require(&findings)?;
    let health = Arc::new(Health::new(args.window * STALE_WINDOWS));
    // Before other threads start, so that neither a signal nor an end is missed.
    let lifecycle = Lifecycle::start(Arc::clone(&health)).context("cannot handle signals")?;
    let http = match args.metrics {
        MetricsAddress::Off => None,
        MetricsAddress::At(address) => {
            Some(HttpEndpoint::bind(address, Arc::clone(&metrics), Arc::clone(&health))?)
        }
    };
    let waits = args.wait_config();
    let growth_period_bytes = args.growth_period_bytes();
    let live = args.live_config();
    let block = args.block_config();
    let tcp = args.tcp_config();
    let alloc_windows = args.alloc_windows();
    let mut export = ExportConfig::new(args.server, args.spool_dir);
    export.spool_max_bytes = args.spool_max_bytes;
    let exporter =
        Arc::new(Exporter::spawn(export, Arc::clone(&metrics), Arc::clone(&health), http)?);
    let config = PipelineConfig {
        cpu_rate_hz: args.kinds.contains(&Kind::Cpu).then_some(args.cpu_rate_hz),
        waits,
        growth_period_bytes,
        live,
        alloc_windows,
        block,
        tcp,
        kinds: args.kinds,
        window: args.window,
        host: host_name(args.host.as_deref()),
        labels: args.labels,
        unwind: UnwindConfig {
            max_bytes: args.unwind_max_bytes,
            cache_dir: args.unwind_cache_dir.dir(),
            cache_max_bytes: args.unwind_cache_max_bytes,
        },
        symbolize: SymbolizeConfig {
            cache_bytes: usize::try_from(args.symbol_cache_bytes).unwrap_or(usize::MAX),
            dwarf_bytes: args.dwarf_bytes,
            debug_dirs: args.debug_dirs,
            ..SymbolizeConfig::default()
        },
    };
    info!(host = config.host, "everflame-agent {}", env!("CARGO_PKG_VERSION"));
    let pipeline = Pipeline::start(config, Arc::clone(&exporter), metrics, health)?;

    let code = match lifecycle.wait() {
        Ending::Signal(signal) => {
            info!(signal, "stopping; a second signal ends the agent at once");
            0
        }
        Ending::Thread(end) => {
            error!("{end}; the agent ends, to be started again by its supervisor");
            EX_SOFTWARE
        }
    };
    stop(&lifecycle, &pipeline, &exporter);
    // Not by returning: that would wait for a thread that did not end in time.
    std::process::exit(code.into())
}

/// Spools and delivers what there is, within [`STOP_TIMEOUT`].
fn stop(lifecycle: &Lifecycle, pipeline: &Pipeline, exporter: &Exporter) {
    let deadline = Instant::now() + STOP_TIMEOUT;
    pipeline.stop();
    if !lifecycle.wait_for(&Pipeline::THREADS, deadline) {
        warn!("the last window was not ready in time and is lost");
    }
    exporter.finish(FLUSH_TIMEOUT.min(deadline.saturating_duration_since(Instant::now())));
    // A moment more than it has, so that it can say what became of it.
    if !lifecycle.wait_for(&[Exporter::THREAD], deadline + Duration::from_millis(500)) {
        warn!("the export thread did not end in time");
    }
    let left = exporter.spool().len();
    if left > 0 {
        info!(batches = left, "undelivered batches stay in the spool for the next start");
    }
}

/// Descriptors are held for executables that are running, of which a host can have more
/// than the usual 1024.
fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        debug!(%error, "cannot raise the limit of open files");
    }
}

/// Names what is off for want of a right.
fn report_missing(findings: &[Finding], metrics: &Metrics) {
    for Finding { need, present } in findings {
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
fn show_capabilities(format: ReportFormat) -> ExitCode {
    let findings = capabilities::find();
    let features = KernelFeatures::probe();
    let report = Report::new(&findings, &features);
    match format {
        ReportFormat::Text => print!("{report}"),
        ReportFormat::Json => println!("{:#}", serde_json::json!(report)),
    }
    ExitCode::from(match (capabilities::require(&findings), features.require()) {
        (Err(_), _) => EX_NOPERM,
        (Ok(()), Err(_)) => EX_UNAVAILABLE,
        (Ok(()), Ok(())) => 0,
    })
}

#[expect(clippy::print_stderr, reason = "there is no log in this command")]
fn show_unwind_info(args: &unwind_info::Args) -> ExitCode {
    let report = match unwind_info::run(args) {
        Ok(report) => report,
        Err(error) => {
            let code = if error.is_no_input() { EX_NOINPUT } else { EX_DATAERR };
            eprintln!("error: {:#}", anyhow::Error::from(error));
            return ExitCode::from(code);
        }
    };
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let written = match args.format {
        ReportFormat::Text => write!(stdout, "{report}"),
        ReportFormat::Json => writeln!(stdout, "{:#}", serde_json::json!(report)),
    };
    match written.and_then(|()| stdout.flush()) {
        // Who reads it may have enough, as `head` does.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("error: cannot write: {error}");
            ExitCode::from(EX_UNAVAILABLE)
        }
        _ => ExitCode::SUCCESS,
    }
}
