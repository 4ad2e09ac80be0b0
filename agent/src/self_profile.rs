//! A CPU profile of this very process, on request.
//!
//! Sampling is by SIGPROF and only while a [`Recording`] lives: before and after, the
//! process has neither a timer nor a handler for it. There is one SIGPROF per process,
//! so there is at most one recording. System calls that the kernel does not restart
//! (`epoll_wait`, `poll`) return EINTR while it lives.
//!
//! The sampler keeps its tables, about 70 MiB, from the first recording on, and needs as
//! much again for a moment when one ends.

use std::time::{Duration, UNIX_EPOCH};

use everflame_profile::pprof::Profile;
use everflame_profile::{FunctionInfo, LabelValue, LocationId, ProfileBuilder, encode_gz};
use pprof::{ProfilerGuard, ProfilerGuardBuilder, Report, Symbol};

/// Samples per second of CPU time; a prime, to stay out of step with periodic work.
const RATE_HZ: i32 = 97;

/// Samples that hit these libraries are skipped: the handler unwinds with libgcc, which
/// must not be interrupted by itself, and the others are where unwinding goes wrong.
const NOT_SAMPLED: [&str; 3] = ["libgcc", "ld-linux", "vdso"];

/// Why this process cannot be profiled now.
#[derive(Debug, thiserror::Error)]
pub enum SelfProfileError {
    /// There is a recording already.
    #[error("a profile of this process is being recorded already; try again when it is done")]
    Busy,
    /// The sampler does not work.
    #[error("cannot profile this process")]
    Sampler {
        /// What the sampler said.
        source: pprof::Error,
    },
    /// The task that symbolises did not get to its end.
    #[error("the profile of this process was lost on the way")]
    Lost {
        /// What happened to the task.
        source: tokio::task::JoinError,
    },
}

impl From<pprof::Error> for SelfProfileError {
    fn from(source: pprof::Error) -> Self {
        match source {
            pprof::Error::Running => Self::Busy,
            source => Self::Sampler { source },
        }
    }
}

/// Records for `duration` and returns a gzip'd pprof. Sampling ends when the returned
/// future is dropped, as an HTTP server does when the client hangs up.
///
/// # Errors
/// [`SelfProfileError::Busy`] while another recording is in progress.
pub async fn record(duration: Duration) -> Result<Vec<u8>, SelfProfileError> {
    let recording = Recording::start()?;
    tokio::time::sleep(duration).await;
    // Symbolising takes a while; what else the event loop does should not wait for it.
    tokio::task::spawn_blocking(|| recording.finish().map(|profile| encode_gz(&profile)))
        .await
        .map_err(|source| SelfProfileError::Lost { source })?
}

/// A recording in progress; dropping it ends it.
pub struct Recording {
    guard: ProfilerGuard<'static>,
}

impl Recording {
    /// Starts to sample all threads of this process.
    ///
    /// # Errors
    /// [`SelfProfileError::Busy`] while another recording lives.
    pub fn start() -> Result<Self, SelfProfileError> {
        let guard =
            ProfilerGuardBuilder::default().frequency(RATE_HZ).blocklist(&NOT_SAMPLED).build()?;
        Ok(Self { guard })
    }

    /// Ends the recording and symbolises it, which may take seconds of CPU time.
    ///
    /// # Errors
    /// When the sampler lost its data.
    pub fn finish(self) -> Result<Profile, SelfProfileError> {
        let profile = self.guard.report().build().map(|report| convert(&report));
        drop(self);
        release_memory();
        Ok(profile?)
    }
}

fn convert(report: &Report) -> Profile {
    let period_ns = 1_000_000_000 / i64::from(RATE_HZ);
    let mut builder = ProfileBuilder::new(&[("samples", "count"), ("cpu", "nanoseconds")], "cpu");
    builder.set_period("cpu", "nanoseconds", period_ns);
    let start = report.timing.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
    builder.set_time(nanoseconds(start), nanoseconds(report.timing.duration));

    for (frames, &count) in &report.data {
        // One inner list per address, innermost inlined function first.
        let stack: Vec<LocationId> = frames
            .frames
            .iter()
            .skip_while(|symbols| symbols.iter().any(is_sampler))
            .map(|symbols| location(&mut builder, symbols))
            .collect();
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let labels = [("thread", LabelValue::Str(&frames.thread_name))];
        builder.sample(&stack, &[count, count.saturating_mul(period_ns)], &labels);
    }
    builder.finish()
}

/// Whether this is code of the sampler, whose frames are on top of what it interrupts.
fn is_sampler(symbol: &Symbol) -> bool {
    let name = symbol.name();
    let name = name.trim_start_matches('<');
    name.starts_with("backtrace::") || name.starts_with("pprof::")
}

fn location(builder: &mut ProfileBuilder, symbols: &[Symbol]) -> LocationId {
    // The sampler names the start of the function, which is close enough: the lines are
    // what people read.
    let address = symbols.iter().find_map(|symbol| symbol.addr).map_or(0, |addr| addr as u64);
    let lines: Vec<_> = symbols
        .iter()
        .map(|symbol| {
            let function = builder.function(FunctionInfo {
                name: &symbol.name(),
                system_name: &symbol.sys_name(),
                filename: &symbol
                    .filename
                    .as_ref()
                    .map_or_else(Default::default, |path| path.to_string_lossy()),
                start_line: 0,
            });
            (function, symbol.lineno().into())
        })
        .collect();
    builder.location(None, address, &lines)
}

/// Gives back what symbolising took, which malloc would keep: an agent is sized for its
/// usual work, and a look at it should not make it outgrow its limits for good.
fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) can be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
