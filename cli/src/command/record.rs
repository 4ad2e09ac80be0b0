//! `everflame record`: profiles this host here and now, without a collector.
//!
//! The work is done by [`everflame_agent::session`]; here is when to stop, and what to do
//! with the result. A recording ends after its duration, on Ctrl-C, or when what it
//! records has ended, and what there is then is written.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use everflame_agent::session::{
    AllocMode, DEFAULT_ALLOC_PERIOD_BYTES, Progress, Recording, Session, SessionConfig,
    SessionError, Target,
};
use everflame_profile::block::{EVENT, Event};
use everflame_profile::{
    Kind, encode_gz, remove_labelled, retain_labelled, sample_type_index, tcp,
};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::progress::ProgressLine;
use super::subject::{Subject, SubjectError};
use crate::args::{AllocModeArg, LockSide, RecordArgs};
use crate::failure::{ExitStatus, Failure, say};
use crate::format::Format;
use crate::output::Destination;
use crate::svg;

/// Without a COMMAND a recording ends by itself.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);
/// How soon the end of a subject or a Ctrl-C is noticed.
const TICK: Duration = Duration::from_millis(50);

/// Why there is no recording.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error("cannot record")]
    Session {
        #[from]
        source: SessionError,
    },
    #[error("cannot listen for Ctrl-C")]
    Signals {
        #[source]
        source: io::Error,
    },
}

impl RecordError {
    pub(crate) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Subject(error) => error.exit_status(),
            Self::Session { source: SessionError::NoProcess { .. } } => ExitStatus::Usage,
            Self::Session { source } if is_permission(source) => ExitStatus::Permission,
            Self::Session { .. } => ExitStatus::Unavailable,
            Self::Signals { .. } => ExitStatus::Internal,
        }
    }

    pub(crate) fn way_out(&self) -> Option<&'static str> {
        match self {
            Self::Session { source } if is_permission(source) => {
                Some("`everflame-agent capabilities` says what is missing")
            }
            _ => None,
        }
    }
}

/// Whether the kernel said EPERM or EACCES somewhere below.
fn is_permission(error: &SessionError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What to record, and until when.
pub(super) struct Request {
    pub(super) config: SessionConfig,
    /// 10 seconds unless there is a command.
    pub(super) duration: Option<Duration>,
    pub(super) command: Vec<OsString>,
}

impl Request {
    pub(super) fn new(
        kind: Kind,
        rate_hz: u64,
        (pid, comm): (Option<u32>, Option<String>),
        duration: Option<Duration>,
        command: Vec<OsString>,
    ) -> Self {
        let target = match (pid, comm) {
            (Some(pid), _) => Target::Pid(pid),
            (None, Some(comm)) => Target::Comm(comm),
            // This process, so that the command is sampled from its first moment on.
            (None, None) if !command.is_empty() => Target::Tree(std::process::id()),
            (None, None) => Target::All,
        };
        let config = SessionConfig {
            kind,
            rate_hz,
            alloc_mode: AllocMode::default(),
            alloc_period_bytes: DEFAULT_ALLOC_PERIOD_BYTES,
            live_period_bytes: None,
            target,
        };
        Self { config, duration, command }
    }
}

pub(crate) fn run(args: RecordArgs) -> Result<(), Failure> {
    check_flags(&args)?;
    let format = output_format(&args.output)?;
    let destination = Destination::new(Some(&args.output), format == Format::Pprof)?;
    let target = (args.pid, args.comm);
    let mut request = Request::new(args.kind, args.rate_hz, target, args.duration, args.command);
    request.config.alloc_mode = args.mode.into();
    request.config.alloc_period_bytes = args.alloc_period.unwrap_or(DEFAULT_ALLOC_PERIOD_BYTES);
    request.config.live_period_bytes = args.alloc_period;
    let (mut recording, took) = capture(request)?;
    let side = args.side.to_possible_value();
    if args.kind == Kind::Lock
        && args.side != LockSide::All
        && let Some(side) = side
    {
        retain_labelled(&mut recording.profile, "side", side.get_name());
    }
    if args.kind == Kind::Block && format != Format::Pprof {
        // What a program waits for when it makes a file durable are requests: not twice in one picture.
        retain_labelled(&mut recording.profile, EVENT, Event::Request.name());
    }
    if args.kind == Kind::Tcp && format != Format::Pprof {
        // How long a segment travels is not something that was waited for.
        remove_labelled(&mut recording.profile, EVENT, tcp::Event::Rtt.name());
    }
    if recording.profile.sample.is_empty() {
        let missed = match args.kind {
            Kind::Lock => "did not wait for locks",
            Kind::OffCpu => "did not wait",
            Kind::Block => "did nothing to disks",
            Kind::Alloc if args.mode == AllocModeArg::Live => {
                "allocated nothing that was sampled, or has not loaded libeverflame_alloc.so \
                 (LD_PRELOAD; see docs/live-heap.md)"
            }
            Kind::Alloc if args.mode == AllocModeArg::Window => "did not allocate",
            Kind::Alloc => "did not grow by as much as a sample stands for",
            Kind::Tcp => "had nothing to do with TCP connections",
            Kind::Cpu => "did not use the cpu",
        };
        let message = format!(
            "no samples in {took:.1?}: what was recorded {missed}; {} is not written",
            args.output.display()
        );
        return Err(Failure::NoData { message });
    }
    let index = sample_type_index(&recording.profile, None)?;
    destination.write(&match format {
        Format::Folded => svg::folded(&recording.profile, index).into_bytes(),
        Format::Svg => svg::draw(&recording.profile, index)?,
        _ => encode_gz(&recording.profile),
    })?;
    summary(&args.output, &recording, took);
    Ok(())
}

/// Refuses what is of another kind, and what a mode of kind alloc cannot do.
fn check_flags(args: &RecordArgs) -> Result<(), Failure> {
    let mode = AllocMode::from(args.mode);
    if args.kind != Kind::Alloc && args.alloc_period.is_some() {
        return Err(Failure::usage("--alloc-period is of --kind alloc"));
    }
    if args.kind != Kind::Lock && args.side != LockSide::Joined {
        return Err(Failure::usage("--side is of --kind lock"));
    }
    if mode == AllocMode::Faults {
        return Ok(());
    }
    let name = mode.name();
    if args.kind != Kind::Alloc {
        return Err(Failure::usage(format!("--mode {name} is of --kind alloc")));
    }
    if mode == AllocMode::Window && args.pid.is_none() {
        return Err(Failure::usage(format!(
            "--mode {name} looks into one process that runs: say which by --pid"
        )));
    }
    Ok(())
}

/// Records, and says how long it took.
pub(super) fn capture(request: Request) -> Result<(Recording, Duration), Failure> {
    let Request { config, duration, command } = request;
    let stop = stop_on_signals().map_err(|source| RecordError::Signals { source })?;
    let subject = match config.target {
        Target::Pid(pid) => Subject::process(pid).map_err(RecordError::from)?,
        _ => Subject::none(),
    };
    let session = Session::start(config).map_err(RecordError::from)?;
    let subject = match command.split_first() {
        Some((program, arguments)) => {
            let subject = Subject::start(program, arguments).map_err(RecordError::from)?;
            session.retarget(Target::Tree(subject.pid()));
            subject
        }
        None => subject,
    };
    let duration = duration.or(command.is_empty().then_some(DEFAULT_DURATION));
    let (recording, took) = record(session, subject, duration, &stop)?;
    for note in &recording.notes {
        say(note);
    }
    Ok((recording, took))
}

/// What a file's name asks for.
fn output_format(path: &Path) -> Result<Format, Failure> {
    Format::of_file(path)
        .filter(|format| matches!(format, Format::Pprof | Format::Folded | Format::Svg))
        .ok_or_else(|| {
            Failure::usage(format!(
                "cannot tell from {} what to write: end it in .pb.gz for a pprof profile, .folded \
                 for collapsed stacks or .svg for a flame graph",
                path.display()
            ))
        })
}

/// Set by the first Ctrl-C or SIGTERM; the second one kills as usual.
fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// What is recording: the agent's session, or a pretended one in tests.
trait Recorder {
    fn progress(&self) -> Progress;
    fn finish(self) -> Result<Recording, SessionError>;
}

impl Recorder for Session {
    fn progress(&self) -> Progress {
        Self::progress(self)
    }

    fn finish(self) -> Result<Recording, SessionError> {
        Self::finish(self)
    }
}

/// Waits for the end, and says how long it took to come.
fn record(
    recorder: impl Recorder,
    mut subject: Subject,
    duration: Option<Duration>,
    stop: &AtomicBool,
) -> Result<(Recording, Duration), RecordError> {
    let started = Instant::now();
    let progress = ProgressLine::new(duration);
    loop {
        let elapsed = started.elapsed();
        let left = duration.map_or(TICK, |duration| duration.saturating_sub(elapsed));
        if left.is_zero() || stop.load(Ordering::Relaxed) || subject.has_ended() {
            break;
        }
        progress.show(elapsed, &recorder.progress());
        std::thread::sleep(left.min(TICK));
    }
    let took = started.elapsed();
    progress.symbolising();
    // Before the command is ended: its memory says what its addresses mean.
    let recording = recorder.finish();
    progress.clear();
    if let Some(note) = subject.end() {
        say(&note);
    }
    Ok((recording?, took))
}

/// What was written, for people only.
fn summary(path: &Path, recording: &Recording, took: Duration) {
    let stderr = io::stderr();
    if io::IsTerminal::is_terminal(&stderr) {
        let _ = writeln!(
            &stderr,
            "{} samples in {took:.1?}, {} lost: {}",
            recording.samples,
            recording.lost,
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use everflame_profile::pprof::Profile;

    use super::*;

    /// Records nothing; is there to be finished.
    struct Pretended;

    impl Recorder for Pretended {
        fn progress(&self) -> Progress {
            Progress { samples: 1, lost: 0 }
        }

        fn finish(self) -> Result<Recording, SessionError> {
            Ok(Recording { profile: Profile::default(), samples: 7, lost: 0, notes: Vec::new() })
        }
    }

    fn check(subject: Subject, duration: Option<Duration>, is_stopped: bool) {
        let stop = AtomicBool::new(is_stopped);
        let (recording, took) = record(Pretended, subject, duration, &stop).unwrap();
        assert_eq!(recording.samples, 7);
        if let Some(duration) = duration.filter(|_| !is_stopped) {
            assert!(took >= duration);
        }
    }

    fn command(program: &str, argument: &str) -> Subject {
        Subject::start(OsStr::new(program), &[OsString::from(argument)]).unwrap()
    }

    #[test]
    fn recording_ends_after_its_duration() {
        check(Subject::none(), Some(Duration::from_millis(1)), false);
    }

    #[test]
    fn recording_ends_when_it_is_interrupted() {
        check(Subject::none(), None, true);
        check(command("sleep", "1000"), None, true);
    }

    #[test]
    fn recording_ends_with_its_command() {
        check(command("sleep", "0"), None, false);
    }

    #[test]
    fn recording_ends_with_its_process() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let subject = Subject::process(child.id()).unwrap();
        child.kill().unwrap();
        check(subject, None, false);
        child.wait().unwrap();
    }

    #[test]
    fn command_that_runs_on_is_ended_with_the_recording() {
        let subject = command("sleep", "1000");
        let pid = subject.pid();
        check(subject, Some(Duration::from_millis(1)), false);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn extension_is_checked() {
        assert_eq!(output_format(Path::new("a.pb.gz")).ok(), Some(Format::Pprof));
        for name in ["a", "a.json", "a.txt", "a.gz", "-", "/dev/stdout"] {
            let error = output_format(Path::new(name)).unwrap_err();
            assert_eq!(error.exit_status(), ExitStatus::Usage, "{name}: {error}");
        }
    }
}
