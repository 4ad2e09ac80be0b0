//! Where samples go once they are complete.

use super::{identity_of, monotonic_ns};
use crate::aggregate::{Aggregator, DiskName};
use crate::collect::{Io, Sample};
use crate::disks::Disks;
use crate::live::{LiveHeaps, ObjectId};
use crate::process::{DataPlace, Process};

/// Where samples go.
pub(super) struct Sink<'a> {
    pub(super) aggregator: &'a mut Aggregator,
    pub(super) live: &'a mut LiveHeaps,
    pub(super) disks: &'a mut Disks,
    pub(super) vanished: &'a mut u64,
    /// Whether it matters what futexes are.
    pub(super) locks: bool,
}

impl Sink<'_> {
    /// Adds a sample to the window, with what /proc says of its process; and to the object that it is about,
    /// if it is about one.
    pub(super) fn add(&mut self, sample: Sample, object: Option<ObjectId>, process: &mut Process) {
        let Self { aggregator, live, disks, vanished, locks } = self;
        let pid = sample.pid;
        let identify = |process: &mut Process| identity_of(pid, process, vanished);
        if let Some(allocated) = sample.allocated.as_deref() {
            let (stack, ranges) = aggregator.add_allocated(&sample, allocated, process, identify);
            if let Some(object) = object {
                live.set_stack(object, &stack, ranges);
            }
            return;
        }
        match sample.io.as_deref() {
            Some(Io::Tcp(_)) => return aggregator.add_connection_event(sample, process, identify),
            Some(&Io::Synced { major, minor }) => {
                let file_system = disks.name(major, minor);
                return aggregator.add_request(sample, file_system, process, identify);
            }
            Some(_) => {
                return aggregator.add_request(sample, DiskName::default(), process, identify);
            }
            None => {}
        }
        let locate = |process: &mut Process, avma: u64| -> Option<DataPlace> {
            locks.then(|| process.data_place(pid, avma, monotonic_ns())).flatten()
        };
        aggregator.add(sample, process, identify, locate);
    }
}
