//! The collector's own CPU profile, for finding out what makes it slow.
//!
//! The `pprof` crate samples this process by a timer signal; what it saw is put
//! into a profile by our own builder, so that it reads like any other.

use std::time::Duration;

use everflame_profile::{FunctionInfo, Kind, LabelValue, ProfileBuilder, encode_gz};
use tokio::{sync::Mutex, task, time};

/// Not a divisor of common timer rates, so that sampling does not beat with them.
const RATE_HZ: i32 = 97;

/// One at a time: there is one profiling timer per process.
static RUNNING: Mutex<()> = Mutex::const_new(());

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelfProfileError {
    /// Somebody else is at it.
    #[error("a profile of this process is being recorded already; try again when it is done")]
    Busy,
    /// The sampler does not work here.
    #[error("cannot sample this process")]
    Sampler {
        /// Why.
        #[source]
        source: pprof::Error,
    },
    /// A bug.
    #[error("building the profile crashed")]
    Crashed {
        /// How.
        #[source]
        source: task::JoinError,
    },
}

/// Records this process for a while; gzip'd pprof.
///
/// # Errors
/// When another recording is under way, or the process cannot be sampled.
pub(crate) async fn record(duration: Duration) -> Result<Vec<u8>, SelfProfileError> {
    let _running = RUNNING.try_lock().map_err(|_locked| SelfProfileError::Busy)?;
    let sampler = |source| SelfProfileError::Sampler { source };
    let start_unix_ns = crate::query::time::now_unix_ns();
    let guard = pprof::ProfilerGuardBuilder::default()
        .frequency(RATE_HZ)
        // Stacks cannot be walked from within these.
        .blocklist(&["libc", "libgcc", "pthread", "vdso"])
        .build()
        .map_err(sampler)?;
    time::sleep(duration).await;
    // Resolving symbols reads debug information; that takes a while.
    let build = move || {
        let report = guard.report().build().map_err(sampler)?;
        drop(guard);
        Ok(encode_gz(&profile(&report, start_unix_ns, duration)))
    };
    task::spawn_blocking(build).await.map_err(|source| SelfProfileError::Crashed { source })?
}

fn profile(
    report: &pprof::Report,
    start_unix_ns: u64,
    duration: Duration,
) -> everflame_profile::pprof::Profile {
    let period_ns = 1_000_000_000 / i64::from(RATE_HZ);
    let mut builder =
        ProfileBuilder::new(Kind::Cpu.sample_types(), Kind::Cpu.default_sample_type());
    builder.set_period("cpu", "nanoseconds", period_ns);
    builder.set_time(
        i64::try_from(start_unix_ns).unwrap_or(i64::MAX),
        i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX),
    );
    for (frames, count) in &report.data {
        let stack: Vec<_> =
            frames.frames.iter().map(|inlined| location(&mut builder, inlined)).collect();
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        let values = [count, count.saturating_mul(period_ns)];
        builder.sample(&stack, &values, &[("thread", LabelValue::Str(&frames.thread_name))]);
    }
    builder.finish()
}

fn location(
    builder: &mut ProfileBuilder,
    inlined: &[pprof::Symbol],
) -> everflame_profile::LocationId {
    let lines: Vec<_> = inlined
        .iter()
        .map(|symbol| {
            let function = builder.function(FunctionInfo {
                name: &symbol.name(),
                system_name: &symbol.sys_name(),
                filename: &symbol.filename(),
                start_line: 0,
            });
            (function, i64::from(symbol.lineno()))
        })
        .collect();
    let address =
        inlined.first().and_then(|symbol| symbol.addr).map_or(0, |addr| addr.addr() as u64);
    builder.location(None, address, &lines)
}
