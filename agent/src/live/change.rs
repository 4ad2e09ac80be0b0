//! What happens to processes, as far as it changes what they hold.

use super::LiveHeaps;
use crate::collect::ProcessEvent;
use crate::process::{ProcessTable, has_other_threads};
use crate::target::TargetFilter;

/// What an event means for what processes hold.
pub(crate) enum HeapChange {
    None,
    /// A process has become a copy of another.
    Copied {
        pid: u32,
        parent: u32,
    },
    /// A process holds nothing any more.
    Gone {
        pid: u32,
    },
}

impl HeapChange {
    /// Of an event that has not been applied to processes yet.
    pub(crate) fn of(event: &ProcessEvent) -> Self {
        match *event {
            ProcessEvent::Fork { pid, parent } => Self::Copied { pid, parent },
            ProcessEvent::Comm { pid, exec: true, .. } | ProcessEvent::Exit { pid } => {
                Self::Gone { pid }
            }
            _ => Self::None,
        }
    }

    /// To be called when the event has been applied to `processes`.
    pub(crate) fn apply(
        self,
        live: &mut LiveHeaps,
        processes: &mut ProcessTable,
        filter: &TargetFilter,
    ) {
        match self {
            Self::None => {}
            // What a recording is about has ended, and so will the recording: it shows what was left.
            Self::Gone { pid } if filter.root() == Some(pid) => {}
            Self::Gone { pid } => {
                if live.has(pid) && !has_other_threads(pid) {
                    live.ended(pid);
                }
            }
            Self::Copied { pid, parent } => {
                live.ended(pid);
                if live.has(parent) && filter.includes_copies() {
                    let mut program = |pid| (pid, processes.get_mut(pid).generation);
                    live.forked(program(pid), program(parent));
                }
            }
        }
    }
}
