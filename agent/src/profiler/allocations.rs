//! Windows on allocators, as the profiler opens and closes them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use everflame_agent_common::unwind::Registers;
use tracing::debug;

use super::Profiler;
use crate::allocators::Allocators;
use crate::collect::{CollectError, StackCopy};
use crate::process::Mappings;
use crate::rotation::{Rotation, RotationConfig, RotationStats, Turn};
use crate::windows::WindowError;

impl Profiler {
    /// Opens a window on the allocators of a process: what it asks them for is sampled until
    /// [`Self::close_windows`]. Tables that its stacks are walked with are waited for, but not beyond
    /// `deadline`.
    pub fn open_window(&mut self, pid: u32, deadline: Instant) -> Result<(), WindowError> {
        // What has been mapped until now.
        self.drain();
        self.open_window_at_once(pid, deadline)
    }

    fn open_window_at_once(&mut self, pid: u32, deadline: Instant) -> Result<(), WindowError> {
        let mappings = Arc::clone(&self.processes.get_mut(pid).mappings);
        let found = self.windows.find(pid, &mappings)?;
        self.load_tables(&mappings, &found, deadline);
        self.windows.open(pid, found, &self.collector)
    }

    /// Has windows open and close by themselves.
    pub fn rotate_windows(&mut self, config: RotationConfig) {
        self.rotation = Some(Rotation::new(config));
    }

    /// What has come of windows that open by themselves.
    pub fn rotation_stats(&self) -> Option<RotationStats> {
        let stats = self.rotation.as_ref()?.stats;
        let open = self.windows.open_on() as u64;
        Some(RotationStats { nested: self.windows.nested(), open, ..stats })
    }

    /// Opens or closes windows if it is time.
    pub(super) fn turn_windows(&mut self) -> Result<(), CollectError> {
        let stats = self.collector.allocation_stats()?;
        let Some(mut rotation) = self.rotation.take() else { return Ok(()) };
        let now = Instant::now();
        match rotation.turn(now, &stats) {
            Turn::Wait => {}
            Turn::Close => {
                self.windows.close_all();
                rotation.closed(now);
            }
            // Not before the former ones have stopped costing anything.
            Turn::Open if self.windows.is_any_closing() => {}
            Turn::Open => self.open_windows(&mut rotation),
        }
        self.rotation = Some(rotation);
        Ok(())
    }

    fn open_windows(&mut self, rotation: &mut Rotation) {
        self.windows.forget_closed();
        self.drain();
        for (pid, generation) in rotation.candidates(self.processes.running()) {
            if self.windows.open_on() >= rotation.processes() {
                break;
            }
            rotation.took(pid);
            // Nobody waits for tables here.
            match self.open_window_at_once(pid, Instant::now()) {
                Ok(()) => rotation.stats.opened += 1,
                Err(WindowError::Allocators(_)) => rotation.has_none(pid, generation),
                Err(WindowError::Collect(error)) => {
                    rotation.stats.failed += 1;
                    debug!(pid, error = &error as &dyn std::error::Error, "no window");
                }
            }
        }
        rotation.opened(Instant::now());
    }

    /// Has the tables loaded that walks from an allocator's functions need. Large ones are loaded when a stack
    /// meets them, which here would be thousands at once.
    fn load_tables(&mut self, mappings: &Arc<Mappings>, found: &Allocators, deadline: Instant) {
        let starts = mappings.iter().map(|mapping| mapping.start_avma);
        let mut asked = HashSet::new();
        for avma in found.code.starts().chain(starts) {
            self.next_unfinished += 1;
            // A stack that ends with its first frame, as soon as the rule of that is known.
            let registers = Registers { ip: avma, interrupted: 1, ..Registers::default() };
            let stack_copy = Some(Box::new(StackCopy { registers, stack: Box::default() }));
            if self.collector.walk(self.next_unfinished, stack_copy, vec![avma], mappings) {
                asked.insert(self.next_unfinished);
            }
        }
        while !asked.is_empty()
            && let Some(finished) = self.collector.next_finished(deadline)
        {
            if !asked.remove(&finished.id) {
                self.take_finished(finished);
            }
        }
    }

    /// Closes all windows.
    pub fn close_windows(&mut self) {
        self.windows.close_all_and_wait();
        self.rotation = None;
    }

    /// Samples that were left out, as they were of allocators that call themselves.
    pub fn nested_allocations(&self) -> u64 {
        self.windows.nested()
    }
}
