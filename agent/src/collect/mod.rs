//! Takes samples and process records out of the kernel and hands them on in order of time.
//!
//! The only part of the agent that touches BPF and perf events. A [`Collector`] is driven by
//! one thread: [`Collector::wait`] sleeps and meanwhile opens the files of new mappings,
//! [`Collector::drain`] yields what has happened.

mod allocation;
mod block;
mod bpf;
mod config;
mod cpu;
mod error;
mod event;
mod finish;
mod growth;
mod host;
mod hotplug;
mod listeners;
mod live;
mod load;
mod lost;
mod oom;
mod order;
mod sideband;
mod stats;
mod tcp;
mod uprobes;
mod waits;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use everflame_agent_common::event::Kind;
use everflame_agent_common::stats::Program;
use everflame_agent_common::tcp::Connection;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, Timespec};
use rustix::fd::AsRawFd as _;
use tracing::{debug, info, warn};

pub use block::{BlockConfig, BlockStats};
pub use bpf::{BpfError, ProgramForm, UnwindMaps};
pub use config::{AllocMode, CollectConfig};
pub use cpu::{Clock, CpuError, period_ns};
pub use error::CollectError;
pub use event::{Event, Io, ProcessEvent, Sample, StackCopy, ThreadName};
pub use host::monotonic_ns;
pub use live::{AttachStats, LiveConfig};
pub(crate) use lost::brief;
pub use sideband::SidebandError;
pub use stats::{CollectStats, ProgramStats};
pub use tcp::{TcpConfig, TcpStats};
pub use uprobes::{Site, UprobeError, Uprobes};
pub use waits::{WaitConfig, WaitStats};

use crate::kernel::WaitEnd;
use crate::process::{ObjectCache, running_pids, seed};
use crate::unwind::{Unwinder, UnwinderEnded};
use bpf::Bpf;
use cpu::CpuEvents;
use host::{RING_BYTES_FOR_ALL, is_initial_pid_namespace, online_cpus, ring_bytes};
use hotplug::{HOTPLUG_INTERVAL, STALL_INTERVAL};
use listeners::listeners;
use live::{LiveAttachments, LivePrograms};
use load::load;
use order::Ordering;
use sideband::Sideband;
use waits::take_user_stack;

/// After records of processes have been read, those that follow may be more than one: a program that starts maps
/// its loader, then its libraries.
const SIDEBAND_PAUSE: Duration = Duration::from_micros(500);

/// /proc is read again at most this often when records were lost.
const RESEED_INTERVAL: Duration = Duration::from_secs(10);

/// So many events are handed on before the ring buffer is looked at again.
const EVENTS_AT_ONCE: usize = 256;

/// While more events than this wait for their turn, the ring buffer is left alone. A sample takes some
/// hundred bytes.
const MAX_WAITING: usize = 64 * 1024;

/// Epoll data of the descriptor that interrupts a wait; others carry their CPU's number.
const WAKER: u64 = u64::MAX;
const RING: u64 = u64::MAX - 1;

/// Interrupts a [`Collector::wait`] from another thread.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Ends the present wait, or the next one.
    pub fn wake(&self) {
        // Fails only if the counter is full: then the wait ends anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// Everything that is open in the kernel. Dropping it stops the sampling.
pub struct Collector {
    bpf: Bpf,
    cpu: Option<CpuEvents>,
    live: Option<LiveAttachments>,
    sideband: Sideband,
    unwinder: Unwinder,
    objects: ObjectCache,
    ordering: Ordering,
    epoll: OwnedFd,
    wake: OwnedFd,
    next_hotplug_look: Instant,
    next_stall_look: Instant,
    next_reseed: Instant,
    /// Records that the kernel or the unwinder had no room for, when /proc was last read.
    lost_before: u64,
    unwinder_missed: u64,
    unwinder_ended: bool,
    last_drain_ns: u64,
    unreadable: u64,
    clock_backwards: u64,
    waiting_errors: u64,
}

impl Collector {
    /// Starts to sample and to follow processes; those that run already are read from /proc.
    pub fn start(config: &CollectConfig) -> Result<Self, CollectError> {
        if !is_initial_pid_namespace() {
            return Err(CollectError::PidNamespace);
        }
        let cpus = online_cpus()?;
        let is_window_alone = config.window_period_bytes.is_some() && config.cpu_rate_hz.is_none();
        let has_all_connections =
            config.tcp.is_some_and(|tcp| tcp.connections_per_second == u32::MAX);
        let ring_bytes = if is_window_alone || has_all_connections {
            RING_BYTES_FOR_ALL
        } else {
            ring_bytes(cpus.len(), config.live.is_some())
        };
        let cpu = config.cpu_rate_hz.map(|rate_hz| CpuEvents::new(rate_hz, &cpus)).transpose()?;
        let mut bpf = load(config, cpu.as_ref().map(CpuEvents::clock), ring_bytes)?;
        let live = config.live.and_then(|live| {
            let programs = LivePrograms::take(&mut bpf)?;
            Some(LiveAttachments::new(programs, live, config.target_pid))
        });
        let maps = bpf.take_unwind_maps().ok_or(BpfError::Missing { name: "CHUNKS" })?;
        let unwinder = Unwinder::start(maps, &config.unwind)?;
        // Before the first sample, so that none comes from a process that is not known.
        let sideband = Sideband::start(&cpus)?;
        let wait_error = |source: rustix::io::Errno| CollectError::Wait { source: source.into() };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(wait_error)?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(wait_error)?;
        let mut collector = Self {
            bpf,
            cpu,
            live,
            sideband,
            unwinder,
            objects: ObjectCache::default(),
            ordering: Ordering::default(),
            epoll,
            wake,
            next_hotplug_look: Instant::now() + HOTPLUG_INTERVAL,
            next_stall_look: Instant::now() + STALL_INTERVAL,
            next_reseed: Instant::now() + RESEED_INTERVAL,
            lost_before: 0,
            unwinder_missed: 0,
            unwinder_ended: false,
            last_drain_ns: 0,
            unreadable: 0,
            clock_backwards: 0,
            waiting_errors: 0,
        };
        collector.watch_all().map_err(wait_error)?;
        collector.seed(monotonic_ns());
        // Nothing reads the ring buffer while /proc is read.
        if let Some(cpu) = &mut collector.cpu {
            cpu.start(&cpus, collector.bpf.cpu_program()?)?;
        }
        // If nothing else is asked for, there is nothing to go on with.
        collector.bpf.start_waits(config.cpu_rate_hz.is_none())?;
        let without = |rest: CollectConfig| rest.is_nothing();
        let is_all = without(CollectConfig { growth_period_bytes: None, ..config.clone() });
        collector.bpf.start_growth(is_all)?;
        collector.bpf.start_block(without(CollectConfig { block: None, ..config.clone() }))?;
        if config.tcp.is_some() {
            collector.bpf.note_listeners(&listeners())?;
        }
        collector.bpf.start_tcp(without(CollectConfig { tcp: None, ..config.clone() }))?;
        if config.is_of_uprobes_alone() {
            collector.bpf.require_uprobes()?;
        }
        if config.oom_victims {
            collector.bpf.start_oom_victims();
        }
        for (program, error) in collector.bpf.refused() {
            lost::warn(program, error);
        }
        if let (Some(WaitConfig { period_ns, locks, .. }), Some(end)) =
            (config.waits, collector.wait_end())
        {
            info!(end = end.name(), period_ns, locks, "following waits");
        }
        Ok(collector)
    }

    /// What drives the CPU samples, if any are taken.
    pub fn clock(&self) -> Option<Clock> {
        self.cpu.as_ref().map(CpuEvents::clock)
    }

    /// How the ends of waits are seen; `None` if they are not followed.
    pub fn wait_end(&self) -> Option<WaitEnd> {
        self.bpf.wait_end()
    }

    /// Whether a process's live heap is seen. `None` if it has not got the library for that.
    ///
    /// # Errors
    /// Why it is not seen although it has, for people.
    pub fn live_attachment(&self, pid: u32) -> Option<Result<(), String>> {
        self.live.as_ref()?.attachment(pid)
    }

    /// Has waits that go on reported up to now, as samples of the next [`Self::drain`].
    pub fn report_waiting(&mut self) {
        if let Err(error) = self.bpf.report_waiting() {
            self.waiting_errors += 1;
            debug!(error = &error as &dyn std::error::Error, "waits that go on are not seen");
        }
    }

    /// The connections that are followed now, by the kernel's address of the socket.
    pub fn connections(&self) -> impl Iterator<Item = (u64, Connection)> {
        self.bpf.connections()
    }

    /// A handle that interrupts [`Self::wait`].
    pub fn waker(&self) -> io::Result<Waker> {
        self.wake.try_clone().map(Waker)
    }

    /// Sleeps until `deadline`, or until the ring buffer fills up, or until woken. Process
    /// records are read as they come.
    pub fn wait(&mut self, deadline: Instant) -> Result<(), CollectError> {
        loop {
            self.follow_cpus();
            let now = Instant::now();
            if now >= deadline {
                return Ok(());
            }
            let next_read = self.sideband.next_read().unwrap_or(deadline);
            let until = deadline.min(self.next_hotplug_look).min(next_read);
            let woken = match self.poll(until.saturating_duration_since(now)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
                result => result.map_err(|source| CollectError::Wait { source })?,
            };
            if self.unwinder_ended {
                return Err(UnwinderEnded.into());
            }
            if woken.sideband {
                self.drain_sideband();
                std::thread::sleep(SIDEBAND_PAUSE.min(deadline.saturating_duration_since(now)));
            } else if self.sideband.next_read().is_some_and(|at| at <= Instant::now()) {
                self.drain_sideband();
            }
            if woken.interrupted {
                return Ok(());
            }
        }
    }

    /// Hands everything that happened until now to `each`, in order of time.
    pub fn drain(&mut self, mut each: impl FnMut(u64, Event)) {
        let mut horizon_ns = monotonic_ns();
        if horizon_ns < self.last_drain_ns {
            // CLOCK_MONOTONIC never does, but a restored virtual machine may.
            self.clock_backwards += 1;
            horizon_ns = self.last_drain_ns;
        }
        self.last_drain_ns = horizon_ns;
        #[cfg(feature = "debug-log")]
        self.bpf.flush_log();
        self.read_samples();
        if let Some(live) = &mut self.live {
            live.tend();
        }
        // After the samples: see `order`.
        self.drain_sideband();
        self.reseed_after_loss();
        let mut handed = 0usize;
        while let Some((time_ns, event)) = self.ordering.pop_until(horizon_ns) {
            each(time_ns, event);
            handed += 1;
            // What is sampled meanwhile has its turn later, but must not wait where there is little room.
            if handed.is_multiple_of(EVENTS_AT_ONCE) && self.ordering.len() < MAX_WAITING {
                self.read_samples();
            }
        }
    }

    /// Takes what there is out of the ring buffer.
    fn read_samples(&mut self) {
        let events = self.bpf.events_mut();
        while let Some(record) = events.next() {
            match Sample::read(&record) {
                Some((time_ns, record)) if record.kind == Kind::OomVictim => {
                    let event = Event::OutOfMemory { pid: oom::victim(&record) };
                    self.ordering.push(time_ns, event);
                }
                Some((time_ns, mut sample)) => {
                    if sample.kind == Kind::Waiting {
                        take_user_stack(&mut sample);
                    }
                    self.ordering.push(time_ns, Event::Sample(sample));
                }
                None => self.unreadable += 1,
            }
        }
    }

    /// Programs that the kernel refuses and that the agent can do without, and why.
    pub fn refused_programs(&self) -> impl Iterator<Item = (Program, &BpfError)> {
        self.bpf.refused()
    }

    /// How long timed runs of the CPU sampler took: upper bounds in nanoseconds, and how
    /// many runs lie below each but not below the one before.
    pub fn cpu_run_times(&self) -> Result<Vec<(u64, u64)>, CollectError> {
        Ok(self.bpf.run_times(Program::Cpu)?)
    }

    /// Events that wait for their turn.
    pub fn queue_depth(&self) -> usize {
        self.ordering.len()
    }

    /// Reads what runs from /proc, and keeps up with the side-band meanwhile.
    fn seed(&mut self, time_ns: u64) {
        let pids = match running_pids() {
            Ok(pids) => pids,
            Err(error) => {
                warn!(%error, "cannot list /proc: processes that run already stay unnamed");
                return;
            }
        };
        let mut processes = 0;
        for pid in pids {
            if let Some(process) = seed(pid, &mut self.objects) {
                processes += 1;
                let event = ProcessEvent::Seed(process);
                self.tell_others(time_ns, &event);
                self.ordering.push(time_ns, Event::Process(event));
            }
            self.drain_sideband();
        }
        info!(processes, "read running processes");
    }

    /// After records were lost it is not known what runs where: /proc says it again.
    fn reseed_after_loss(&mut self) {
        let lost = self.sideband.lost() + self.unwinder_missed;
        if lost > self.lost_before && Instant::now() >= self.next_reseed {
            warn!(lost, "records of processes were lost, reading /proc again");
            self.lost_before = lost;
            self.seed(monotonic_ns());
            self.next_reseed = Instant::now() + RESEED_INTERVAL;
        }
    }

    fn drain_sideband(&mut self) {
        let mut events = Vec::new();
        self.sideband.drain(&mut self.objects, |time_ns, event| events.push((time_ns, event)));
        // The unwinder is told at once, so here is where records of several CPUs come in order.
        events.sort_by_key(|(time_ns, _)| *time_ns);
        for (time_ns, event) in events {
            self.tell_others(time_ns, &event);
            self.ordering.push(time_ns, Event::Process(event));
        }
    }

    /// Tells of an event those that cannot wait for its turn.
    fn tell_others(&mut self, time_ns: u64, event: &ProcessEvent) {
        let attached = self.live.as_mut().and_then(|live| live.observe(event));
        match self.unwinder.observe(time_ns, event) {
            Ok(true) => {}
            Ok(false) => self.unwinder_missed += 1,
            Err(UnwinderEnded) => self.unwinder_ended = true,
        }
        if let Some(pid) = attached {
            // If there is no room for this, its first samples ask for what they need.
            let _ = self.unwinder.prepare(pid);
        }
    }

    fn poll(&self, timeout: Duration) -> io::Result<Woken> {
        let timeout = Timespec::try_from(timeout).ok();
        let mut ready = Vec::with_capacity(16);
        epoll::wait(&self.epoll, spare_capacity(&mut ready), timeout.as_ref())?;
        let mut woken = Woken::default();
        for event in ready {
            match event.data.u64() {
                WAKER => {
                    let mut count = [0; 8];
                    let _ = rustix::io::read(&self.wake, &mut count);
                    woken.interrupted = true;
                }
                RING => woken.interrupted = true,
                _ => woken.sideband = true,
            }
        }
        Ok(woken)
    }

    fn watch_all(&mut self) -> rustix::io::Result<()> {
        watch(&self.epoll, self.wake.as_fd(), WAKER, EventFlags::IN)?;
        let ring = self.bpf.events_mut().as_raw_fd();
        // SAFETY: the ring buffer is open as long as `self.bpf` is.
        let ring = unsafe { BorrowedFd::borrow_raw(ring) };
        // Edge-triggered: what waits there below the mark is no reason to wake up.
        watch(&self.epoll, ring, RING, EventFlags::IN | EventFlags::ET)?;
        for (cpu, descriptor) in self.sideband.descriptors() {
            watch(&self.epoll, descriptor, u64::from(cpu), EventFlags::IN)?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Woken {
    sideband: bool,
    interrupted: bool,
}

fn watch(
    epoll: &OwnedFd,
    descriptor: BorrowedFd<'_>,
    data: u64,
    flags: EventFlags,
) -> rustix::io::Result<()> {
    epoll::add(epoll, descriptor, epoll::EventData::new_u64(data), flags)
}
