//! What a recording is about, as far as it can end: a process that runs already, a command
//! that was started for it, or nothing.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus as ChildStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::failure::ExitStatus;

/// How long a command has to end after SIGTERM before it is left alone.
const PATIENCE: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(10);

/// Why there is nothing to record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubjectError {
    #[error("cannot start `{}`", program.display())]
    Start {
        program: OsString,
        #[source]
        source: io::Error,
    },
    #[error("there is no process with pid {pid}")]
    NoProcess { pid: u32 },
    #[error("cannot watch the process with pid {pid}")]
    Watch {
        pid: u32,
        #[source]
        source: io::Error,
    },
}

impl SubjectError {
    pub(crate) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Start { source, .. } => ExitStatus::of_io(source, ExitStatus::NoInput),
            Self::NoProcess { .. } => ExitStatus::NoInput,
            Self::Watch { source, .. } => ExitStatus::of_io(source, ExitStatus::NoInput),
        }
    }
}

pub(crate) struct Subject(Kind);

enum Kind {
    /// The whole host, or a name: never ends.
    None,
    /// Watched through a pidfd, which cannot come to mean another process.
    Process {
        pidfd: OwnedFd,
        pid: u32,
    },
    Command {
        child: Child,
        status: Option<ChildStatus>,
    },
}

impl Subject {
    pub(crate) fn none() -> Self {
        Self(Kind::None)
    }

    /// A process that runs already.
    pub(crate) fn process(pid: u32) -> Result<Self, SubjectError> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(SubjectError::NoProcess { pid })?;
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self(Kind::Process { pidfd, pid })),
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => {
                // INVAL is a thread that is not the first one of its process.
                Err(SubjectError::NoProcess { pid })
            }
            Err(errno) => Err(SubjectError::Watch { pid, source: errno.into() }),
        }
    }

    /// A command, started now.
    pub(crate) fn start(program: &OsStr, arguments: &[OsString]) -> Result<Self, SubjectError> {
        let child = Command::new(program)
            .args(arguments)
            .spawn()
            .map_err(|source| SubjectError::Start { program: program.to_owned(), source })?;
        Ok(Self(Kind::Command { child, status: None }))
    }

    /// 0 if there is no process.
    pub(crate) fn pid(&self) -> u32 {
        match &self.0 {
            Kind::None => 0,
            Kind::Process { pid, .. } => *pid,
            Kind::Command { child, .. } => child.id(),
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        match &mut self.0 {
            Kind::None => false,
            Kind::Process { pidfd, .. } => {
                // A pidfd becomes readable when its process ends.
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|n| n > 0)
            }
            Kind::Command { child, status } => {
                if status.is_none() {
                    *status = child.try_wait().ok().flatten();
                }
                status.is_some()
            }
        }
    }

    /// Ends the command if it is one that still runs. Says what people should know.
    pub(crate) fn end(mut self) -> Option<String> {
        if self.has_ended() {
            return match self.0 {
                Kind::Command { status: Some(status), .. } if !status.success() => {
                    Some(format!("the command ended with {status}"))
                }
                _ => None,
            };
        }
        let Kind::Command { child, .. } = &self.0 else { return None };
        let pid = child.id();
        // Not waited for yet, so this cannot be anybody else's pid.
        let target = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let _ = kill_process(target, Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while !self.has_ended() {
            if Instant::now() >= deadline {
                return Some(format!(
                    "the command still runs, as pid {pid}, although it was asked to end"
                ));
            }
            std::thread::sleep(TICK);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_that_cannot_start_is_named() {
        let error = Subject::start(OsStr::new("/nonexistent/prog"), &[]).err().unwrap();
        assert_eq!(error.to_string(), "cannot start `/nonexistent/prog`");
        assert_eq!(error.exit_status(), ExitStatus::NoInput);
    }

    #[test]
    fn missing_process_is_named() {
        let error = Subject::process(u32::MAX).err().unwrap();
        assert_eq!(error.to_string(), "there is no process with pid 4294967295");
        assert_eq!(error.exit_status(), ExitStatus::NoInput);
    }

    #[test]
    fn running_process_has_not_ended() {
        assert!(!Subject::process(std::process::id()).unwrap().has_ended());
        assert!(!Subject::none().has_ended());
    }

    #[test]
    fn failed_command_is_mentioned() {
        let mut subject = Subject::start(OsStr::new("false"), &[]).unwrap();
        while !subject.has_ended() {
            std::thread::sleep(TICK);
        }
        assert_eq!(subject.end().unwrap(), "the command ended with exit status: 1");
    }
}
