//! Attaches to the library that samples allocations from within processes (`alloc/`).
//!
//! Of the two ways to attach, to a file in all processes and to a file in one, this takes the first
//! unless one process is asked for. The kernel then puts the probes, and counts the semaphore up, in
//! each process that maps the file from now on, in the moment that it does: nothing is missed at its
//! start, children of fork go on, and a host with hundreds of processes needs two links for each
//! version of the library. A recording of one process must not switch the others' sampling on, so it
//! asks for that one; its children are taken away again by the kernel when they meet the probes.
//!
//! The kernel takes the probes away and counts the semaphores down when the links are closed, by
//! whatever way the agent ends.

mod library;
mod period;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use everflame_agent_common::stats::Program;
use tracing::{info, warn};

use super::bpf::Bpf;
use super::event::ProcessEvent;
use super::uprobes::{Site, UprobeError, UprobeProgram, Uprobes};
use crate::object::{ObjectFile, ObjectKind};
use crate::process::{Backing, Mapping, has_other_threads};
use library::Library;
use period::Periods;

/// The programs, by their names in the object.
pub(super) const PROGRAMS: [(Program, &str); 2] =
    [(Program::Allocated, "alloc_sampled"), (Program::Freed, "free_sampled")];

/// How long probes stay when the last process that has the library is gone: the next one may be about to
/// start, and attaching takes the kernel milliseconds.
const LINGER: Duration = Duration::from_secs(10);

/// How the live heap is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveConfig {
    /// One byte in so many is sampled; `None` leaves that to the processes.
    pub period_bytes: Option<u64>,
}

/// The two programs, loaded.
#[derive(Debug)]
pub(super) struct LivePrograms {
    allocated: UprobeProgram,
    freed: UprobeProgram,
}

impl LivePrograms {
    /// Takes them from where they were loaded; attaches nothing yet. `None` if the kernel has refused one of
    /// them.
    pub(super) fn take(bpf: &mut Bpf) -> Option<Self> {
        let allocated = bpf.take_uprobe_program(Program::Allocated)?;
        Some(Self { allocated, freed: bpf.take_uprobe_program(Program::Freed)? })
    }

    fn attach(
        &self,
        file: &File,
        library: &Library,
        pid: Option<u32>,
    ) -> Result<[Uprobes; 2], UprobeError> {
        // The very file, whatever has become of its name.
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let site =
            |offset| Site { offset, ref_ctr_offset: Some(library.semaphore_offset), cookie: 0 };
        // Ends first: an object whose end is not seen would look like a leak.
        let freed = self.freed.attach(&path, &[site(library.freed_offset)], pid)?;
        let allocated = self.allocated.attach(&path, &[site(library.allocated_offset)], pid)?;
        // Dropped in this order.
        Ok([allocated, freed])
    }
}

/// A version of the library that processes have mapped.
#[derive(Debug)]
struct Attachment {
    library: Library,
    /// Keeps the file open.
    object: Arc<ObjectFile>,
    probes: Result<[Uprobes; 2], UprobeError>,
    pids: HashSet<u32>,
    /// When the last process was gone.
    idle_since: Option<Instant>,
}

/// How many live heaps are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachStats {
    /// Processes that have the library, and whose objects are seen.
    pub processes: usize,
    /// Files that are attached to.
    pub files: usize,
    /// Files that could not be attached to, so far.
    pub failed: u64,
}

/// All that is attached to.
#[derive(Debug)]
pub(super) struct LiveAttachments {
    programs: LivePrograms,
    only: Option<u32>,
    attached: Vec<Attachment>,
    /// Files that are not the library, by address. Weak, so that an address is not mistaken for another's.
    others: HashMap<usize, Weak<ObjectFile>>,
    sweep_others_at: usize,
    periods: Option<Periods>,
    next_sweep: Instant,
    failed: u64,
}

/// How often it is looked whether processes are there whose end may not have been told.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Files that are known not to be the library, before it is looked which of them are still there.
const SWEEP_AFTER: usize = 1024;

impl LiveAttachments {
    /// Attaches to nothing until it hears of processes; to `only` one, if that is given.
    pub(super) fn new(programs: LivePrograms, config: LiveConfig, only: Option<u32>) -> Self {
        Self {
            programs,
            only,
            attached: Vec::new(),
            others: HashMap::new(),
            sweep_others_at: SWEEP_AFTER,
            periods: config.period_bytes.map(Periods::new),
            next_sweep: Instant::now() + SWEEP_INTERVAL,
            failed: 0,
        }
    }

    /// Looks whether a process has got the library, or is gone. If it has got it, this is its id.
    pub(super) fn observe(&mut self, event: &ProcessEvent) -> Option<u32> {
        match event {
            ProcessEvent::Mmap { pid, mapping } => {
                return self.mapped(*pid, mapping).then_some(*pid);
            }
            ProcessEvent::Seed(process) => {
                let has_it = process
                    .mappings
                    .iter()
                    .filter(|mapping| self.mapped(process.pid, mapping))
                    .count();
                return (has_it > 0).then_some(process.pid);
            }
            ProcessEvent::Fork { pid, parent } => {
                // Probes and semaphores are copied with the memory, and stay if all are asked for.
                let copied = |attachment: &&mut Attachment| attachment.pids.contains(parent);
                if self.only.is_none() {
                    for attachment in self.attached.iter_mut().filter(copied) {
                        attachment.pids.insert(*pid);
                    }
                }
                if let Some(periods) = &mut self.periods {
                    periods.copied(*pid, *parent);
                }
            }
            // Only its main thread, if there are others.
            ProcessEvent::Exit { pid } if has_other_threads(*pid) => {}
            ProcessEvent::Exit { pid } | ProcessEvent::Comm { pid, exec: true, .. } => {
                self.gone(*pid);
            }
            ProcessEvent::Comm { exec: false, .. } => {}
        }
        None
    }

    /// Does what could not be done at once. To be called now and then.
    pub(super) fn tend(&mut self) {
        if let Some(periods) = &mut self.periods {
            periods.retry();
        }
        if self.next_sweep <= Instant::now() {
            self.next_sweep = Instant::now() + SWEEP_INTERVAL;
            let known = self.attached.iter().flat_map(|attachment| attachment.pids.iter().copied());
            let gone = known.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists());
            for pid in gone.collect::<Vec<u32>>() {
                self.gone(pid);
            }
        }
        let is_wanted = |attachment: &Attachment| {
            attachment.idle_since.is_none_or(|since| since.elapsed() < LINGER)
        };
        for left in self.attached.extract_if(.., |attachment| !is_wanted(attachment)) {
            info!(file = left.object.path, "no process has the library any more: detached");
        }
    }

    /// Whether this process's objects are seen. `None` if it has not got the library.
    ///
    /// # Errors
    /// Why they are not seen although it has.
    pub(super) fn attachment(&self, pid: u32) -> Option<Result<(), String>> {
        let of_process = |attachment: &&Attachment| attachment.pids.contains(&pid);
        let attached = self.attached.iter().find(of_process)?;
        Some(attached.probes.as_ref().map(|_| ()).map_err(ToString::to_string))
    }

    pub(super) fn stats(&self) -> AttachStats {
        let seen = || self.attached.iter().filter(|attachment| attachment.probes.is_ok());
        AttachStats {
            processes: seen().map(|attachment| attachment.pids.len()).sum(),
            files: seen().count(),
            failed: self.failed,
        }
    }

    /// Whether this is the library, and not known yet.
    fn mapped(&mut self, pid: u32, mapping: &Mapping) -> bool {
        let Backing::Object(object) = &mapping.backing else { return false };
        let ObjectKind::Elf { file: Some(file) } = &object.kind else { return false };
        if self.only.is_some_and(|only| only != pid) || self.is_another(object) {
            return false;
        }
        let known = self.attached.iter().position(|known| Arc::ptr_eq(&known.object, object));
        let at = match known {
            Some(at) => at,
            None => {
                let Some(library) = Library::find(file) else {
                    self.note_other(object);
                    return false;
                };
                self.attach(file, library, object);
                self.attached.len() - 1
            }
        };
        let attachment = &mut self.attached[at];
        let is_new = attachment.pids.insert(pid);
        attachment.idle_since = None;
        let period_avma = attachment.library.period_avma(mapping.start_avma, mapping.file_offset);
        if let Some(periods) = &mut self.periods {
            periods.set(pid, period_avma);
        }
        is_new
    }

    fn attach(&mut self, file: &File, library: Library, object: &Arc<ObjectFile>) {
        let path = &object.path;
        let probes = self.programs.attach(file, &library, self.only);
        match &probes {
            Ok(_) => info!(file = path, "attached to the library: live heaps are seen"),
            Err(error) => {
                self.failed += 1;
                if !error.is_gone() {
                    let error = error as &dyn std::error::Error;
                    warn!(file = path, error, "live heaps are not seen");
                }
            }
        }
        self.attached.push(Attachment {
            library,
            object: Arc::clone(object),
            probes,
            pids: HashSet::new(),
            idle_since: None,
        });
    }

    fn gone(&mut self, pid: u32) {
        if let Some(periods) = &mut self.periods {
            periods.forget(pid);
        }
        for attachment in &mut self.attached {
            if attachment.pids.remove(&pid) && attachment.pids.is_empty() {
                attachment.idle_since = Some(Instant::now());
            }
        }
    }

    fn is_another(&self, object: &Arc<ObjectFile>) -> bool {
        self.others.get(&Arc::as_ptr(object).addr()).is_some_and(|other| other.strong_count() > 0)
    }

    fn note_other(&mut self, object: &Arc<ObjectFile>) {
        self.others.insert(Arc::as_ptr(object).addr(), Arc::downgrade(object));
        if self.others.len() >= self.sweep_others_at {
            self.others.retain(|_, object| object.strong_count() > 0);
            self.sweep_others_at = self.others.len() * 2 + SWEEP_AFTER;
        }
    }
}
