//! Process records from perf's side-band: what is started, renamed, mapped and gone.
//!
//! One buffer per CPU, of an event that counts nothing and only carries records. Mapped
//! files are opened while the record is read, so that a process may be gone the next
//! moment.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, Clock, SampleFlag, Sampler};
use thiserror::Error;

use super::cpu::way_out;
use super::event::ProcessEvent;
use crate::process::{MappedMemory, Mapping, ObjectCache};

/// Room for some thousand records on each CPU.
const BUFFER_BYTES: usize = 256 * 1024;

/// The record's own time is its last word, as nothing else is asked for.
const TIME_BYTES: usize = 8;

/// `PERF_RECORD_MISC_COMM_EXEC` of include/uapi/linux/perf_event.h.
const COMM_EXEC: u16 = 1 << 13;

/// Why processes cannot be followed.
#[derive(Debug, Error)]
pub enum SidebandError {
    /// The kernel refuses the event.
    #[error("cannot follow processes on cpu {cpu}: {way_out}")]
    Open {
        /// The CPU.
        cpu: u32,
        /// What helps.
        way_out: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// The side-band buffers of all CPUs.
pub(super) struct Sideband {
    by_cpu: BTreeMap<u32, Sampler>,
    lost: u64,
    unreadable: u64,
}

impl Sideband {
    /// Begins to follow processes on `cpus`.
    pub(super) fn start(cpus: &[u32]) -> Result<Self, SidebandError> {
        let mut sideband = Self { by_cpu: BTreeMap::new(), lost: 0, unreadable: 0 };
        for &cpu in cpus {
            sideband.open(cpu)?;
        }
        Ok(sideband)
    }

    /// Opens a buffer for a CPU that has none.
    pub(super) fn open(&mut self, cpu: u32) -> Result<(), SidebandError> {
        if self.by_cpu.contains_key(&cpu) {
            return Ok(());
        }
        let sampler = open(cpu).map_err(|source| SidebandError::Open {
            cpu,
            way_out: way_out(&source),
            source,
        })?;
        self.by_cpu.insert(cpu, sampler);
        Ok(())
    }

    /// The CPUs that have one.
    pub(super) fn cpus(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_cpu.keys().copied()
    }

    /// Forgets the buffer of a CPU that went offline, after a last [`Self::drain`].
    pub(super) fn close(&mut self, cpu: u32) {
        self.by_cpu.remove(&cpu);
    }

    /// Each CPU's descriptor, readable when there are records.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.by_cpu.iter().map(|(cpu, sampler)| {
            // SAFETY: the sampler owns the descriptor and outlives the borrow.
            (*cpu, unsafe { BorrowedFd::borrow_raw(sampler.as_raw_fd()) })
        })
    }

    /// Reads everything that waits.
    pub(super) fn drain(
        &mut self,
        objects: &mut ObjectCache,
        mut each: impl FnMut(u64, ProcessEvent),
    ) {
        for sampler in self.by_cpu.values_mut() {
            while let Some(record) = sampler.next_record() {
                let bytes = record.to_contiguous();
                let time =
                    bytes.len().checked_sub(TIME_BYTES).and_then(|at| bytes[at..].first_chunk());
                let (Some(time), Ok(parsed)) = (time, record.parse_record()) else {
                    self.unreadable += 1;
                    continue;
                };
                let exec = record.misc() & COMM_EXEC != 0;
                match parsed {
                    Record::Lost(lost) => self.lost += lost.lost,
                    parsed => {
                        if let Some(event) = process_event(parsed, exec, objects) {
                            each(u64::from_ne_bytes(*time), event);
                        }
                    }
                }
            }
        }
    }

    /// Records that the kernel dropped because a buffer was full.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Records that could not be parsed.
    pub(super) fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

fn process_event(
    record: Record<'_>,
    exec: bool,
    objects: &mut ObjectCache,
) -> Option<ProcessEvent> {
    Some(match record {
        Record::Comm(comm) => ProcessEvent::Comm {
            pid: comm.pid,
            tid: comm.tid,
            name: String::from_utf8_lossy(trim_padding(&comm.comm)).into_owned(),
            exec,
        },
        Record::Mmap2(mmap) => {
            let path = String::from_utf8_lossy(trim_padding(&mmap.filename)).into_owned();
            let memory = MappedMemory {
                pid: mmap.pid,
                start_avma: mmap.addr,
                end_avma: mmap.addr.saturating_add(mmap.len),
                file_offset: mmap.pgoff,
                path,
                build_id: mmap.build_id().and_then(crate::object::BuildId::new),
                inode: mmap.maj().zip(mmap.min()).zip(mmap.ino()),
            };
            ProcessEvent::Mmap { pid: mmap.pid, mapping: Mapping::open(memory, objects) }
        }
        // New threads come as forks too; only those that start a process matter.
        Record::Fork(fork) if fork.pid != fork.ppid => {
            ProcessEvent::Fork { pid: fork.pid, parent: fork.ppid }
        }
        Record::Exit(exit) if exit.pid == exit.tid => ProcessEvent::Exit { pid: exit.pid },
        _ => return None,
    })
}

/// Strings in records are padded with zeros to a multiple of eight.
fn trim_padding(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

fn open(cpu: u32) -> io::Result<Sampler> {
    let build = |build_id: bool| {
        Builder::new(Software::DUMMY)
            .any_pid()
            .one_cpu(usize::try_from(cpu).unwrap_or(usize::MAX))
            .include_kernel()
            .sample(SampleFlag::TIME)
            .sample_id_all(true)
            .clockid(Clock::MONOTONIC)
            .mmap(true)
            .mmap2(true)
            .comm(true)
            .comm_exec(true)
            .task(true)
            .build_id(build_id)
            // Wakes the reader at the first byte; waking by number of events never fires
            // for an event that takes no samples.
            .wakeup_watermark(1)
            .build()
    };
    // Build ids in records came with Linux 5.12; without them files are told apart by inode.
    let counter = build(true).or_else(|_| build(false))?;
    let mut sampler = counter.sampled(BUFFER_BYTES)?;
    sampler.enable()?;
    Ok(sampler)
}
