//! What is known of processes and of what they hold.

use super::{Profiler, identity_of, monotonic_ns};
use crate::joins::Missed;
use crate::live::LiveStats;
use crate::process::Process;

/// What is known of processes, and what is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessStats {
    /// Processes that are known.
    pub processes: usize,
    /// Their executable mappings.
    pub mappings: usize,
    /// Mappings that were not taken note of, as their processes have too many.
    pub refused_mappings: u64,
    /// Processes that were gone before it could be found out who they are, or what control group
    /// they are in.
    pub vanished: u64,
}

impl Profiler {
    /// Adds to the present window what processes hold of their live heaps now. A state, not a sum: once,
    /// before the window is taken.
    pub fn report_held(&mut self) {
        let Self { live, processes, aggregator, vanished, .. } = self;
        let vanished = std::cell::RefCell::new(vanished);
        let now_ns = monotonic_ns();
        for (pid, generation) in live.programs() {
            let Some(process) = processes.program_mut(pid, generation) else {
                // Its end was lost, or it has become another program.
                live.ended(pid);
                continue;
            };
            let identify =
                |process: &mut Process| identity_of(pid, process, &mut vanished.borrow_mut());
            let held = live.held(pid, now_ns);
            aggregator.add_held(pid, process, identify, held, |frame| live.range(frame));
        }
        live.collect();
    }

    /// What is known of live heaps.
    pub fn live_stats(&self) -> LiveStats {
        self.live.stats()
    }

    /// Whether a process's live heap is seen. `None` if it has not got the library for that.
    ///
    /// # Errors
    /// Why it is not seen although it has, for people.
    pub fn live_attachment(&self, pid: u32) -> Option<Result<(), String>> {
        self.collector.live_attachment(pid)
    }

    /// Requests to disks that are in no profile.
    pub fn missed_requests(&self) -> Missed {
        self.joins.missed_requests()
    }

    /// TCP connections and requests on them that are without their stacks.
    pub fn missed_connections(&self) -> Missed {
        self.joins.missed_connections()
    }

    /// What is known of processes.
    pub fn process_stats(&self) -> ProcessStats {
        let (processes, mappings) = self.processes.len();
        let refused_mappings = self.processes.refused_mappings();
        ProcessStats { processes, mappings, refused_mappings, vanished: self.vanished }
    }
}
