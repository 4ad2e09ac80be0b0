//! Profiles that do not wait for their window's end: of processes that end for want of memory.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::metrics::Metrics;
use crate::profiler::{ClosedWindow, Profiler};

/// How soon one that found no room is offered again.
const INTERVAL: Duration = Duration::from_millis(100);

/// How many may wait.
const MAX_WAITING: usize = 64;

/// Those that wait for the next stage.
#[derive(Default)]
pub(crate) struct Urgent(VecDeque<ClosedWindow>);

impl Urgent {
    /// Takes note of processes that end.
    pub(crate) fn take_victims(&mut self, profiler: &mut Profiler, metrics: &Metrics) {
        let (profiles, victims) = profiler.take_victims();
        metrics.oom_victims.inc_by(victims as u64);
        for closed in profiles {
            if self.0.len() == MAX_WAITING {
                metrics.windows_dropped.inc();
                continue;
            }
            for process in &closed.window.processes {
                warn!(pid = process.pid, name = process.name, "out of memory: the kernel ends it");
            }
            self.0.push_back(closed);
        }
    }

    /// Hands on as many as there is room for.
    pub(crate) fn offer(&mut self, sender: &SyncSender<ClosedWindow>) {
        while let Some(closed) = self.0.pop_front() {
            if let Err(TrySendError::Full(closed) | TrySendError::Disconnected(closed)) =
                sender.try_send(closed)
            {
                self.0.push_front(closed);
                return;
            }
        }
    }

    /// When to offer them again, if there are any.
    pub(crate) fn next_offer(&self) -> Option<Instant> {
        (!self.0.is_empty()).then(|| Instant::now() + INTERVAL)
    }

    /// Those that are left.
    pub(crate) fn left(self) -> impl Iterator<Item = ClosedWindow> {
        self.0.into_iter()
    }
}
