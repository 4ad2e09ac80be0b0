//! The clocks that trigger CPU samples: one perf event on every CPU that is online.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use perf_event::events::{Hardware, Software};
use perf_event::{Builder, Counter, ReadFormat};
use thiserror::Error;
use tracing::{info, warn};

/// What drives the sampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The hardware's cycle counter: its interrupt reaches code that runs with interrupts
    /// disabled.
    Cycles,
    /// A high-resolution timer of the kernel, for machines without hardware counters.
    CpuClock,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cycles => "hardware cycles",
            Self::CpuClock => "cpu-clock",
        })
    }
}

/// Why CPUs are not sampled.
#[derive(Debug, Error)]
pub enum CpuError {
    /// The kernel does not open an event.
    #[error("cannot open a perf event on cpu {cpu}: {way_out}")]
    Open {
        /// The CPU.
        cpu: u32,
        /// What helps.
        way_out: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The rate is not one that the kernel allows.
    #[error(
        "cannot sample at {rate_hz} Hz: the rate must be between 1 and {max_hz} \
         (the sysctl kernel.perf_event_max_sample_rate)"
    )]
    Rate {
        /// What was asked for.
        rate_hz: u64,
        /// What is allowed.
        max_hz: u64,
    },
}

/// The open perf events.
#[derive(Debug)]
pub(super) struct CpuEvents {
    clock: Clock,
    rate_hz: u64,
    by_cpu: BTreeMap<u32, CpuEvent>,
}

#[derive(Debug)]
struct CpuEvent {
    counter: Counter,
    /// How long it had been enabled when it was last looked at.
    enabled: Duration,
}

impl CpuEvents {
    /// Chooses the clock: hardware cycles where there are any.
    pub(super) fn new(rate_hz: u64, cpus: &[u32]) -> Result<Self, CpuError> {
        let max_hz = max_rate_hz();
        if rate_hz == 0 || rate_hz > max_hz {
            return Err(CpuError::Rate { rate_hz, max_hz });
        }
        let first = cpus.first().copied().unwrap_or(0);
        let clock = match open_counter(Clock::Cycles, rate_hz, first) {
            Ok(_) => Clock::Cycles,
            Err(error) => {
                info!(%error, "no hardware cycle counter, sampling by cpu-clock");
                Clock::CpuClock
            }
        };
        Ok(Self { clock, rate_hz, by_cpu: BTreeMap::new() })
    }

    /// Starts sampling each of `cpus` with `program`.
    pub(super) fn start(&mut self, cpus: &[u32], program: BorrowedFd<'_>) -> Result<(), CpuError> {
        for &cpu in cpus {
            self.open(cpu, program)?;
        }
        info!(clock = %self.clock, rate_hz = self.rate_hz, cpus = cpus.len(), "sampling on-CPU stacks");
        Ok(())
    }

    /// What drives the sampling.
    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// The CPUs that are sampled.
    pub(super) fn cpus(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_cpu.keys().copied()
    }

    /// CPUs whose event has stood still since the last time this was asked: they went offline
    /// and came back in between, which an event does not survive.
    pub(super) fn stalled(&mut self) -> Vec<u32> {
        let mut stalled = Vec::new();
        for (cpu, event) in &mut self.by_cpu {
            let enabled = event.counter.read_full().ok().and_then(|data| data.time_enabled());
            match enabled {
                Some(enabled) if enabled > event.enabled => event.enabled = enabled,
                _ => stalled.push(*cpu),
            }
        }
        stalled
    }

    /// Forgets the event of a CPU.
    pub(super) fn close(&mut self, cpu: u32) {
        self.by_cpu.remove(&cpu);
    }

    /// Follows CPUs that went or came: an event on a CPU that goes offline is dead, even
    /// when the CPU comes back.
    pub(super) fn follow(&mut self, online: &[u32], program: BorrowedFd<'_>) {
        self.by_cpu.retain(|cpu, _| online.contains(cpu));
        for &cpu in online {
            if self.by_cpu.contains_key(&cpu) {
                continue;
            }
            match self.open(cpu, program) {
                Ok(()) => info!(cpu, "cpu came online, sampling it"),
                Err(error) => {
                    warn!(cpu, error = &error as &dyn std::error::Error, "cpu is not sampled")
                }
            }
        }
    }

    fn open(&mut self, cpu: u32, program: BorrowedFd<'_>) -> Result<(), CpuError> {
        let counter = open(self.clock, self.rate_hz, cpu, program)
            .map_err(|source| CpuError::Open { cpu, way_out: way_out(&source), source })?;
        self.by_cpu.insert(cpu, CpuEvent { counter, enabled: Duration::ZERO });
        Ok(())
    }
}

/// What helps when `perf_event_open` fails.
pub(super) fn way_out(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root or with CAP_PERFMON, and allow perf_event_open in the seccomp profile"
        }
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (ulimit -n)",
        Some(libc::ENODEV) => "the cpu went offline meanwhile",
        _ => "the kernel refuses it",
    }
}

/// What one sample stands for, in nanoseconds.
pub fn period_ns(rate_hz: u64) -> u64 {
    1_000_000_000 / rate_hz.max(1)
}

fn open(clock: Clock, rate_hz: u64, cpu: u32, program: BorrowedFd<'_>) -> io::Result<Counter> {
    let mut counter = open_counter(clock, rate_hz, cpu)?;
    counter.set_bpf(program.as_raw_fd())?;
    counter.enable()?;
    Ok(counter)
}

/// Some PMUs cannot exclude idle time; the program skips the idle task in any case.
fn open_counter(clock: Clock, rate_hz: u64, cpu: u32) -> io::Result<Counter> {
    match build(clock, rate_hz, cpu, true) {
        Err(_) if clock == Clock::Cycles => build(clock, rate_hz, cpu, false),
        result => result,
    }
}

/// Opens the event disabled, so that it fires only once the program is attached.
fn build(clock: Clock, rate_hz: u64, cpu: u32, exclude_idle: bool) -> io::Result<Counter> {
    let mut builder = match clock {
        Clock::Cycles => Builder::new(Hardware::CPU_CYCLES),
        Clock::CpuClock => Builder::new(Software::CPU_CLOCK),
    };
    match clock {
        Clock::Cycles => builder.sample_frequency(rate_hz),
        Clock::CpuClock => builder.sample_period(period_ns(rate_hz)),
    };
    builder
        .any_pid()
        .one_cpu(usize::try_from(cpu).unwrap_or(usize::MAX))
        .include_kernel()
        .exclude_idle(exclude_idle)
        .read_format(ReadFormat::TOTAL_TIME_ENABLED)
        .build()
}

fn max_rate_hz() -> u64 {
    const DEFAULT: u64 = 100_000;
    std::fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate")
        .ok()
        .and_then(|rate| rate.trim().parse().ok())
        .unwrap_or(DEFAULT)
}
