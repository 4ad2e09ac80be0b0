//! Windows on allocators: probes on what a process calls to get memory, open for a while.
//!
//! Each call costs the process about a microsecond while its window is open, and nothing when it is closed. The
//! probes go with the value that stands for them, whatever becomes of the process.

use std::collections::HashMap;
use std::thread::JoinHandle;

use thiserror::Error;
use tracing::{debug, info};

use crate::allocators::{AllocatorCache, Allocators, AllocatorsError, Code};
use crate::collect::{CollectError, Collector, Uprobes};
use crate::process::Mappings;

/// Threads that close windows.
const CLOSING_THREADS: usize = 8;

/// Why a window does not open.
#[derive(Debug, Error)]
pub enum WindowError {
    /// There is nothing to probe.
    #[error(transparent)]
    Allocators(#[from] AllocatorsError),
    /// The kernel does not probe it.
    #[error(transparent)]
    Collect(#[from] CollectError),
}

/// The windows of all processes.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    cache: AllocatorCache,
    open: HashMap<u32, Vec<Uprobes>>,
    /// Those that are being closed.
    closing: Vec<JoinHandle<()>>,
    /// Of processes that have, or have had, a window of which there may be samples still.
    code: HashMap<u32, Code>,
    /// Samples that were left out, see [`Windows::is_nested`].
    nested: u64,
}

impl Windows {
    /// Looks for what allocates in a process that has this in its memory.
    pub(crate) fn find(
        &mut self,
        pid: u32,
        mappings: &Mappings,
    ) -> Result<Allocators, AllocatorsError> {
        self.cache.find(pid, mappings)
    }

    /// Opens a window on a process. One that is open stays so.
    pub(crate) fn open(
        &mut self,
        pid: u32,
        found: Allocators,
        collector: &Collector,
    ) -> Result<(), WindowError> {
        if self.open.contains_key(&pid) {
            return Ok(());
        }
        let mut probes = Vec::new();
        for file in found.files.iter().filter(|file| !file.sites.is_empty()) {
            let probed = collector.probe_allocations(&file.path, &file.sites, pid);
            let path = &file.object.path;
            probes.push(probed.inspect_err(|_| debug!(pid, path, "cannot be probed"))?);
        }
        for function in &found.slow {
            info!(pid, function, "each call is single-stepped while the window is open");
        }
        self.code.insert(pid, found.code);
        self.open.insert(pid, probes);
        Ok(())
    }

    /// How many windows are open.
    pub(crate) fn open_on(&self) -> usize {
        self.open.len()
    }

    /// Whether there is any.
    pub(crate) fn is_any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether windows that were closed cost their processes still.
    pub(crate) fn is_any_closing(&mut self) -> bool {
        self.closing.retain(|thread| !thread.is_finished());
        !self.closing.is_empty()
    }

    /// Closes all windows. The kernel waits each time until no program runs in the probes any more, some tenths of
    /// a second for each process; so that goes on by itself while samples are read, for several at once.
    pub(crate) fn close_all(&mut self) {
        let mut open: Vec<Vec<Uprobes>> = std::mem::take(&mut self.open).into_values().collect();
        let share = open.len().div_ceil(CLOSING_THREADS).max(1);
        while !open.is_empty() {
            let some = open.split_off(open.len().saturating_sub(share));
            let detach = std::thread::Builder::new().name("detach".to_owned());
            // If there can be no other thread it is done here.
            self.closing.extend(detach.spawn(move || drop(some)).ok());
        }
    }

    /// Closes all windows, and returns when no program runs there any more.
    pub(crate) fn close_all_and_wait(&mut self) {
        self.close_all();
        for thread in self.closing.drain(..) {
            // It does nothing but to let go.
            let _ = thread.join();
        }
    }

    /// Forgets windows that were closed, when all of their samples have been seen.
    pub(crate) fn forget_closed(&mut self) {
        self.code.retain(|pid, _| self.open.contains_key(pid));
    }

    /// Whether a sample of an allocation, with this stack, leaf first, is one that an allocator makes on behalf of
    /// a call that is sampled by itself. To leave it out changes nothing on average, as both are sampled
    /// independently.
    pub(crate) fn is_nested(&mut self, pid: u32, user: &[u64]) -> bool {
        let (Some(code), Some(caller)) = (self.code.get(&pid), user.get(1)) else { return false };
        let is_nested = code.contains(caller.wrapping_sub(1));
        self.nested += u64::from(is_nested);
        is_nested
    }

    /// Samples that were left out, since the start.
    pub(crate) fn nested(&self) -> u64 {
        self.nested
    }
}
