//! What ends an agent: a signal, or one of its threads that ends by itself.
//!
//! Without one of its threads an agent looks alive and delivers nothing, so main waits
//! for the ends of threads as it does for signals. A second signal ends the process at
//! once, whatever the rest is doing.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use tracing::error;

use crate::health::Health;
use crate::pipeline::chain;

const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// Why an agent ends.
#[derive(Debug)]
pub enum Ending {
    /// It was told to, by this signal.
    Signal(i32),
    /// A thread ended.
    Thread(ThreadEnd),
}

/// The end of a thread that [`Health::watch`] knows.
#[derive(Debug)]
pub struct ThreadEnd {
    /// The thread.
    pub name: &'static str,
    /// How it ended.
    pub end: End,
}

/// How a thread ended.
#[derive(Debug)]
pub enum End {
    /// It has nothing more to do.
    Returned,
    /// It could not go on.
    Failed(Box<dyn Error + Send + Sync>),
    /// It has a bug.
    Panicked,
}

impl fmt::Display for ThreadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            End::Returned => write!(f, "the {} thread has ended", self.name),
            End::Failed(error) => {
                write!(f, "the {} thread has failed: {}", self.name, chain(error.as_ref()))
            }
            End::Panicked => write!(f, "the {} thread has panicked", self.name),
        }
    }
}

/// Where everything that ends an agent is reported.
#[derive(Debug)]
pub struct Lifecycle {
    health: Arc<Health>,
    endings: Receiver<Ending>,
}

impl Lifecycle {
    /// Takes over SIGINT and SIGTERM, and listens to the threads of `health`. To be called
    /// before they start, so that nothing is missed.
    ///
    /// # Errors
    /// When signals cannot be handled, or no thread can be started.
    pub fn start(health: Arc<Health>) -> io::Result<Self> {
        let (lifecycle, sender) = Self::listen(health);
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in SIGNALS {
            // The second one ends the process; so the flag is looked at before it is set.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stopping))?;
            flag::register(signal, Arc::clone(&stopping))?;
        }
        let mut signals = Signals::new(SIGNALS)?;
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                if sender.send(Ending::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
        Ok(lifecycle)
    }

    fn listen(health: Arc<Health>) -> (Self, Sender<Ending>) {
        let (sender, endings) = channel();
        health.report_ends_to(sender.clone());
        (Self { health, endings }, sender)
    }

    /// Waits for a reason to end.
    pub fn wait(&self) -> Ending {
        // Health has a sender, so the channel stays open.
        self.endings.recv().unwrap_or(Ending::Signal(SIGTERM))
    }

    /// Waits until these threads have ended, but not beyond `deadline`. True when they have.
    pub fn wait_for(&self, threads: &[&str], deadline: Instant) -> bool {
        while threads.iter().any(|name| self.health.is_running(name)) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.endings.recv_timeout(left) {
                Ok(Ending::Thread(ThreadEnd { end: End::Returned, .. }) | Ending::Signal(_)) => {}
                Ok(Ending::Thread(end)) => error!("{end}"),
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn fixture() -> (Arc<Health>, Lifecycle) {
        let health = Arc::new(Health::new(PATIENCE));
        let (lifecycle, _) = Lifecycle::listen(Arc::clone(&health));
        (health, lifecycle)
    }

    fn check_ending(run: impl FnOnce(crate::health::Heart) + Send + 'static, expected: &str) {
        let (health, lifecycle) = fixture();
        let heart = health.watch("sampling");
        let _ = thread::spawn(move || run(heart)).join();
        match lifecycle.wait() {
            Ending::Thread(end) => assert_eq!(end.to_string(), expected),
            ending @ Ending::Signal(_) => panic!("{ending:?}"),
        }
        assert!(!health.report().healthy);
    }

    #[test]
    fn a_thread_that_ends_by_itself_is_a_reason_to_end() {
        check_ending(drop, "the sampling thread has ended");
        check_ending(
            |heart| {
                let _heart = heart;
                panic!("a bug");
            },
            "the sampling thread has panicked",
        );
        check_ending(
            |heart| {
                let source = io::Error::other("no such luck");
                heart.fail(crate::collect::CollectError::Wait { source });
            },
            "the sampling thread has failed: cannot wait for events: no such luck",
        );
    }

    #[test]
    fn threads_are_waited_for_until_the_deadline() {
        let (health, lifecycle) = fixture();
        let (stuck, quick) = (health.watch("stuck"), health.watch("quick"));
        let quick = thread::spawn(move || drop(quick));
        assert!(lifecycle.wait_for(&["quick"], Instant::now() + PATIENCE));
        assert!(!lifecycle.wait_for(&["stuck"], Instant::now() + Duration::from_millis(20)));
        drop(stuck);
        assert!(lifecycle.wait_for(&["stuck", "quick"], Instant::now()));
        assert!(quick.join().is_ok());
    }

    #[test]
    fn the_first_signal_is_a_reason_to_end() {
        let lifecycle = Lifecycle::start(Arc::new(Health::new(PATIENCE))).unwrap();
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(matches!(lifecycle.wait(), Ending::Signal(SIGTERM)));
    }
}
