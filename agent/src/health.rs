//! Whether the agent does its job, for `/healthz`.
//!
//! The agent is healthy while all its threads run and windows keep being finished. A
//! collector that cannot be reached does not make it unhealthy: it keeps profiling into
//! the spool, and restarting it would help nobody.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::lifecycle::{End, Ending, ThreadEnd};

/// Shared by the stages that report and the endpoint that answers.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    stale_after: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_window: Option<Instant>,
    last_acknowledgement: Option<Instant>,
    connected: bool,
    running: BTreeMap<&'static str, bool>,
    endings: Option<Sender<Ending>>,
}

/// The answer to "how are you?".
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HealthReport {
    /// Whether `problems` is empty.
    pub healthy: bool,
    /// What is wrong, for people.
    pub problems: Vec<String>,
    /// Since the agent started.
    pub uptime_seconds: u64,
    /// Since a window was finished.
    pub seconds_since_window: Option<u64>,
    /// Whether a stream to the collector is open.
    pub collector_connected: bool,
    /// Since the collector took a batch.
    pub seconds_since_acknowledgement: Option<u64>,
}

/// Held by a thread while it lives; see [`Health::watch`].
#[derive(Debug)]
pub struct Heart {
    health: Arc<Health>,
    name: &'static str,
    failure: Option<Box<dyn Error + Send + Sync>>,
}

impl Health {
    /// `stale_after`: how long without a finished window is a failure; a few windows.
    pub fn new(stale_after: Duration) -> Self {
        Self { started: Instant::now(), stale_after, state: Mutex::default() }
    }

    /// Declares a thread that has to run for the agent to be healthy. It counts as dead
    /// when the returned value is dropped, which a panic does too.
    #[must_use = "the thread counts as dead when this is dropped"]
    pub fn watch(self: &Arc<Self>, name: &'static str) -> Heart {
        self.with(|state| state.running.insert(name, true));
        Heart { health: Arc::clone(self), name, failure: None }
    }

    /// Whether a thread was declared and has not ended.
    pub fn is_running(&self, name: &str) -> bool {
        self.with(|state| state.running.get(name).copied().unwrap_or(false))
    }

    /// Reports ends of threads from now on.
    pub(crate) fn report_ends_to(&self, endings: Sender<Ending>) {
        self.with(|state| state.endings = Some(endings));
    }

    /// A window was finished, be it empty.
    pub fn window_finished(&self) {
        self.with(|state| state.last_window = Some(Instant::now()));
    }

    /// The collector took a batch.
    pub fn acknowledged(&self) {
        self.with(|state| state.last_acknowledgement = Some(Instant::now()));
    }

    /// A stream to the collector was opened or lost.
    pub fn set_collector_connected(&self, connected: bool) {
        self.with(|state| state.connected = connected);
    }

    /// The state now.
    pub fn report(&self) -> HealthReport {
        self.report_at(Instant::now())
    }

    fn report_at(&self, now: Instant) -> HealthReport {
        let since = |then: Instant| now.saturating_duration_since(then);
        self.with(|state| {
            let mut problems: Vec<String> = state
                .running
                .iter()
                .filter(|(_, running)| !**running)
                .map(|(name, _)| format!("the {name} thread has ended"))
                .collect();
            let silence = since(state.last_window.unwrap_or(self.started));
            if silence > self.stale_after {
                problems.push(format!("no window was finished for {} s", silence.as_secs()));
            }
            HealthReport {
                healthy: problems.is_empty(),
                problems,
                uptime_seconds: since(self.started).as_secs(),
                seconds_since_window: state.last_window.map(|then| since(then).as_secs()),
                collector_connected: state.connected,
                seconds_since_acknowledgement: state
                    .last_acknowledgement
                    .map(|then| since(then).as_secs()),
            }
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Heart {
    /// The thread ends because of this error.
    pub fn fail(mut self, error: impl Into<Box<dyn Error + Send + Sync>>) {
        self.failure = Some(error.into());
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        let end = match self.failure.take() {
            Some(error) => End::Failed(error),
            None if thread::panicking() => End::Panicked,
            None => End::Returned,
        };
        self.health.with(|state| {
            state.running.insert(self.name, false);
            if let Some(endings) = &state.endings {
                // Nobody listens when the agent is ending already.
                let _ = endings.send(Ending::Thread(ThreadEnd { name: self.name, end }));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE: Duration = Duration::from_secs(60);

    #[test]
    fn an_agent_without_windows_becomes_unhealthy() {
        let health = Health::new(STALE);
        assert!(health.report_at(health.started + STALE).healthy);
        let late = health.report_at(health.started + STALE * 2);
        assert_eq!(late.problems, ["no window was finished for 120 s"]);
    }

    #[test]
    fn a_window_makes_it_healthy_again() {
        let health = Health::new(Duration::ZERO);
        let start = health.started;
        health.window_finished();
        let window = health.with(|state| state.last_window).expect("just finished");
        assert!(health.report_at(window).healthy);
        assert!(!health.report_at(start + STALE).healthy);
    }

    #[test]
    fn a_thread_that_ends_or_panics_is_noticed() {
        let health = Arc::new(Health::new(STALE));
        let ended = health.watch("export");
        let alive = health.watch("collect");
        assert!(health.report().healthy);
        drop(ended);
        assert_eq!(health.report().problems, ["the export thread has ended"]);
        drop(alive);
    }

    #[test]
    fn an_unreachable_collector_is_no_reason_to_restart_the_agent() {
        let health = Health::new(STALE);
        health.set_collector_connected(false);
        let report = health.report();
        assert!(report.healthy && !report.collector_connected);
    }
}
