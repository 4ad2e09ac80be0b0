//! What becomes of samples as they come: their stacks are finished, they are put together with what they belong
//! to, and go to the [sink](super::sink).

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use everflame_agent_common::event::Kind;
use everflame_agent_common::unwind::Stop;

use super::sink::Sink;
use super::{
    EXITED_GRACE_NS, MAX_UNFINISHED, Profiler, SWEEP_INTERVAL_NS, Unfinished, identify_as_copy,
    identity_of, monotonic_ns,
};
use crate::collect::Event;
use crate::live::HeapChange;
use crate::process::has_other_threads;
use crate::starts::Found;
use crate::unwind::Finished;

impl Profiler {
    /// Adds what is known of TCP connections that are there still to the present window: once, before that is
    /// taken. `is_last`: also those that are not there yet.
    pub fn report_connections(&mut self, is_last: bool) {
        let found = self.joins.report(self.collector.connections(), monotonic_ns(), is_last);
        for found in found {
            let (sample, mut process) = match found {
                Found::Joined(joined) => joined,
                Found::Taken => continue,
                Found::Unknown(sample) => {
                    let process = self.processes.get_mut(sample.pid);
                    if !self.filter.admits(&sample, process) {
                        continue;
                    }
                    let process = process.clone();
                    (sample, process)
                }
            };
            self.sink().add(sample, None, &mut process);
        }
    }

    pub(super) fn take_finished_until(&mut self, deadline: Instant) {
        while !self.unfinished.is_empty()
            && let Some(finished) = self.collector.next_finished(deadline)
        {
            self.take_finished(finished);
        }
    }

    pub(super) fn drain(&mut self) {
        self.drain_collector();
        self.ask_for_rest();
        let finished: Vec<Finished> = self.collector.finished().collect();
        for finished in finished {
            self.take_finished(finished);
        }
    }

    /// Hands samples whose walk in the kernel met a missing table to the unwinder.
    fn ask_for_rest(&mut self) {
        for (id, mut unfinished) in std::mem::take(&mut self.arrived) {
            let mappings = Arc::clone(&unfinished.process.mappings);
            let asked = self.unfinished.len() < MAX_UNFINISHED
                && self.collector.finish(id, &mut unfinished.sample, &mappings);
            if asked {
                self.unfinished.insert(id, unfinished);
            } else {
                self.unfinished_refused += 1;
                self.add(unfinished);
            }
        }
    }

    pub(super) fn take_finished(&mut self, finished: Finished) {
        let Some(mut unfinished) = self.unfinished.remove(&finished.id) else { return };
        let mut frames = finished.frames;
        if finished.stop == Stop::Unmapped && frames.len() > 1 {
            // With all that is known of the process now, this was no code.
            frames.pop();
        }
        unfinished.sample.user = frames.into();
        unfinished.sample.user_stop = finished.stop;
        self.add(unfinished);
    }

    pub(super) fn add(&mut self, unfinished: Unfinished) {
        let Unfinished { sample, mut process, object } = unfinished;
        if self.joins.is_beginning(&sample) {
            for (sample, mut process) in self.joins.begin(sample, &process) {
                self.sink().add(sample, None, &mut process);
            }
            return;
        }
        if sample.allocation.is_some() && self.windows.is_nested(sample.pid, &sample.user) {
            return;
        }
        self.sink().add(sample, object, &mut process);
    }

    fn sink(&mut self) -> Sink<'_> {
        let Self { aggregator, live, disks, vanished, locks, .. } = self;
        Sink { aggregator, live, disks, vanished, locks: *locks }
    }

    fn drain_collector(&mut self) {
        let Self {
            collector,
            processes,
            filter,
            aggregator,
            live,
            joins,
            disks,
            windows,
            vanished,
            locks,
            arrived,
            next_unfinished,
            victims,
            ..
        } = self;
        collector.drain(|time_ns, event| match event {
            Event::OutOfMemory { pid } => victims.push(pid),
            Event::Process(event) => {
                filter.observe(&event);
                let change = HeapChange::of(&event);
                processes.apply(time_ns, event);
                change.apply(live, processes, filter);
            }
            Event::Sample(sample) if sample.kind == Kind::Freed => {
                let program = (sample.pid, processes.get_mut(sample.pid).generation);
                let address = sample.allocated.map_or(0, |freed| freed.address);
                live.freed(program, address);
            }
            Event::Sample(sample) => {
                let mut sample = match joins.happen(sample) {
                    Found::Joined((sample, mut process)) => {
                        let mut sink = Sink { aggregator, live, disks, vanished, locks: *locks };
                        return sink.add(sample, None, &mut process);
                    }
                    Found::Taken => return,
                    Found::Unknown(sample) => sample,
                };
                if !filter.admits(&sample, processes.get_mut(sample.pid)) {
                    return joins.ignore(&sample);
                }
                let program = (sample.pid, processes.get_mut(sample.pid).generation);
                let object = match sample.allocated.as_deref() {
                    Some(again) if again.is_restored() => return live.restored(program, again),
                    Some(allocated) => live.allocated(program, time_ns, allocated),
                    None => None,
                };
                identify_as_copy(sample.pid, processes, vanished);
                let process = processes.get_mut(sample.pid);
                sample.cut_stale(&process.mappings);
                if sample.stack_copy.is_some() {
                    // Before the process can be gone.
                    identity_of(sample.pid, process, vanished);
                    *next_unfinished += 1;
                    joins.await_stack(&sample);
                    let unfinished = Unfinished { sample, process: process.clone(), object };
                    arrived.push((*next_unfinished, unfinished));
                } else if joins.is_beginning(&sample) {
                    identity_of(sample.pid, process, vanished);
                    for (sample, mut process) in joins.begin(sample, process) {
                        let mut sink = Sink { aggregator, live, disks, vanished, locks: *locks };
                        sink.add(sample, None, &mut process);
                    }
                } else if sample.allocation.is_none()
                    || !windows.is_nested(sample.pid, &sample.user)
                {
                    let mut sink = Sink { aggregator, live, disks, vanished, locks: *locks };
                    sink.add(sample, object, process);
                }
            }
        });
        let now_ns = monotonic_ns();
        processes.forget_exited(now_ns.saturating_sub(EXITED_GRACE_NS), has_other_threads);
        if now_ns >= self.next_sweep_ns {
            self.next_sweep_ns = now_ns + SWEEP_INTERVAL_NS;
            processes.sweep(now_ns, |pid| Path::new(&format!("/proc/{pid}")).exists());
        }
    }
}
