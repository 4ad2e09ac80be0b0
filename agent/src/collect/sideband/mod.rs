//! Process records from perf's side-band: what is started, renamed, mapped and gone.
//!
//! One buffer per CPU, of an event that counts nothing and only carries records. Mapped
//! files are opened while the record is read, so that a process may be gone the next
//! moment.
//!
//! Who is woken by them is another matter: that is what a second event is for, the bell, whose records nobody reads.
//! It can be switched off without any record being lost ([`pace`]).

mod pace;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Instant;

use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, Clock, Counter, SampleFlag, Sampler};
use rustix::ioctl::{IntegerSetter, Opcode, ioctl, opcode};
use thiserror::Error;
use tracing::debug;

use pace::Pace;

use super::cpu::way_out;
use super::event::ProcessEvent;
use crate::process::{MappedMemory, Mapping, ObjectCache};

/// Room for some thousand records on each CPU.
const BUFFER_BYTES: usize = 256 * 1024;

/// The reader is woken each time that so much has been written, whatever the bell does.
const WAKE_AT_BYTES: usize = BUFFER_BYTES / 4;

/// A page, which is least.
const BELL_BYTES: usize = 4096;

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

/// What is open on a CPU.
struct Buffers {
    records: Sampler,
    bell: Sampler,
}

/// The side-band buffers of all CPUs.
pub(super) struct Sideband {
    by_cpu: BTreeMap<u32, Buffers>,
    pace: Pace,
    lost: u64,
    unreadable: u64,
}

impl Sideband {
    /// Begins to follow processes on `cpus`.
    pub(super) fn start(cpus: &[u32]) -> Result<Self, SidebandError> {
        let mut sideband = Self {
            by_cpu: BTreeMap::new(),
            pace: Pace::new(Instant::now()),
            lost: 0,
            unreadable: 0,
        };
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
        let buffers = open(cpu, !self.pace.is_silent()).map_err(|source| SidebandError::Open {
            cpu,
            way_out: way_out(&source),
            source,
        })?;
        self.by_cpu.insert(cpu, buffers);
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

    /// Each CPU's descriptors, readable when there are records to be read at once.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.by_cpu.iter().flat_map(|(cpu, buffers)| {
            [&buffers.records, &buffers.bell].map(|sampler| {
                // SAFETY: the sampler owns the descriptor and outlives the borrow.
                (*cpu, unsafe { BorrowedFd::borrow_raw(sampler.as_raw_fd()) })
            })
        })
    }

    /// When to read although no descriptor is readable.
    pub(super) fn next_read(&self) -> Option<Instant> {
        self.pace.next_read()
    }

    /// Reads everything that waits.
    pub(super) fn drain(
        &mut self,
        objects: &mut ObjectCache,
        mut each: impl FnMut(u64, ProcessEvent),
    ) {
        let mut count = 0;
        for Buffers { records, bell } in self.by_cpu.values_mut() {
            // Before, so that it rings for what comes meanwhile.
            while bell.next_record().is_some() {}
            while let Some(record) = records.next_record() {
                count += 1;
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
        if self.pace.read(count, Instant::now()) {
            self.set_bells(!self.pace.is_silent());
        }
    }

    /// Has them ring from now on, or not.
    fn set_bells(&self, rings: bool) {
        for (cpu, Buffers { bell, .. }) in &self.by_cpu {
            if let Err(error) = set_output(bell, rings) {
                // Then it is woken too often, or reads late.
                debug!(cpu, %error, "cannot say when to be woken");
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

/// Whether an event writes records. Unlike switching it off this interrupts no other CPU.
fn set_output(sampler: &Sampler, writes: bool) -> io::Result<()> {
    /// `PERF_EVENT_IOC_PAUSE_OUTPUT`, Linux 4.7.
    const PAUSE: Opcode = opcode::write::<u32>(b'$', 9);
    // SAFETY: the sampler owns the descriptor and outlives the borrow.
    let descriptor = unsafe { BorrowedFd::borrow_raw(sampler.as_raw_fd()) };
    // SAFETY: the argument of this request is a number.
    let request = unsafe { IntegerSetter::<PAUSE>::new_usize(usize::from(!writes)) };
    // SAFETY: as above.
    Ok(unsafe { ioctl(descriptor, request) }?)
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

/// Opens both.
fn open(cpu: u32, rings: bool) -> io::Result<Buffers> {
    // First, as the kernel serves the event that was opened last before the others: when it rings, the record is there.
    let mut bell = of_bell(cpu)?.sampled(BELL_BYTES)?;
    set_output(&bell, rings)?;
    bell.enable()?;
    // Build ids in records came with Linux 5.12; without them files are told apart by inode.
    let counter = of_records(cpu, true).or_else(|_| of_records(cpu, false))?;
    let mut records = counter.sampled(BUFFER_BYTES)?;
    records.enable()?;
    Ok(Buffers { records, bell })
}

fn of_records(cpu: u32, build_id: bool) -> io::Result<Counter> {
    of_all(cpu)
        .sample(SampleFlag::TIME)
        .sample_id_all(true)
        .clockid(Clock::MONOTONIC)
        .mmap2(true)
        .comm(true)
        .comm_exec(true)
        .build_id(build_id)
        .wakeup_watermark(WAKE_AT_BYTES)
        .build()
}

fn of_bell(cpu: u32) -> io::Result<Counter> {
    // Rings at the first byte; waking by number of events never fires for an event that takes no samples.
    of_all(cpu).wakeup_watermark(1).build()
}

/// What runs and what is mapped, of all processes.
fn of_all(cpu: u32) -> Builder<'static> {
    let mut builder = Builder::new(Software::DUMMY);
    builder
        .any_pid()
        .one_cpu(usize::try_from(cpu).unwrap_or(usize::MAX))
        .include_kernel()
        .mmap(true)
        .task(true);
    builder
}

#[cfg(test)]
mod tests;
