//! Loads the BPF programs and reads what they count.
//!
//! With `cpu` and `sideband`, the only files that know there is BPF; nothing outside
//! `collect` touches aya.

mod error;
mod fdinfo;
mod wanted;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, PerfEvent, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfError, EbpfLoader};
use everflame_agent_common::config::Config;
use everflame_agent_common::limits::{
    MAX_CONNECTIONS, MAX_LISTENERS, MAX_LOCKS, MAX_REQUESTS, RUN_TIME_BUCKET_NS, RUN_TIME_BUCKETS,
};
use everflame_agent_common::stats::{Counter, Program, run_time_slot, slot};
use everflame_agent_common::tcp::{CONNECTION_WORDS, Connection};
use everflame_agent_common::unwind::page::Page;

use super::block::BlockPrograms;
use super::host::max_processes;
use super::stats::ProgramStats;
use super::tcp::TcpPrograms;
use super::uprobes::UprobeProgram;
use super::waits::{WaitConfig, WaitPrograms};
use super::{growth, oom};
use crate::kernel::{BlockTracepoints, TcpHooks, WaitEnd, lift_memlock_limit};
pub use error::BpfError;
use wanted::Wanted;

/// The compiled programs of agent-ebpf.
static RECENT: &[u8] = aya::include_bytes_aligned!(env!("EVERFLAME_BPF_OBJECT"));
static OLD: &[u8] = aya::include_bytes_aligned!(env!("EVERFLAME_BPF_OBJECT_OLD_KERNELS"));

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// In which of two forms the programs are loaded; see agent-ebpf/src/kernel.rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramForm {
    /// For Linux 5.17 and later.
    Recent,
    /// For Linux 5.10 and later. Samples CPUs only.
    Old,
}

const CPU_SAMPLE: &str = "cpu_sample";

/// The maps that hold what walks need to know.
pub struct UnwindMaps {
    /// Chunks of pages.
    pub chunks: ArrayOfMaps<MapData, Array<MapData, Page>>,
    /// `Shard`, as words.
    pub shards: Array<MapData, [u64; 3]>,
    /// `Layout`, as words, by process id.
    pub processes: HashMap<MapData, u32, [u64; 5]>,
    /// How many `processes` has room for.
    pub max_processes: u32,
}

/// The loaded programs. Dropping it unloads them.
pub(super) struct Bpf {
    ebpf: Ebpf,
    exec_error: Option<BpfError>,
    waits: Wanted<WaitPrograms>,
    growth: Wanted<()>,
    block: Wanted<BlockPrograms>,
    tcp: Wanted<TcpPrograms>,
    /// Those that were asked for.
    uprobes: Vec<(Program, Result<UprobeProgram, BpfError>)>,
    oom_error: Option<BpfError>,
    unwind: Option<UnwindMaps>,
    run_times: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    stats: PerCpuArray<MapData, u64>,
    memory_bytes: u64,
    #[cfg(feature = "debug-log")]
    log: aya_log::EbpfLogger<&'static dyn log::Log>,
}

/// Says what to do about a kernel without type information, which nothing works without.
pub(super) fn require_btf() -> Result<(), BpfError> {
    if Path::new(KERNEL_BTF).exists() { Ok(()) } else { Err(BpfError::NoBtf) }
}

/// Which programs are loaded, beside the CPU sampler.
#[derive(Default)]
pub(super) struct Programs {
    pub(super) waits: Option<WaitConfig>,
    pub(super) block: Option<BlockTracepoints>,
    pub(super) tcp: Option<TcpHooks>,
    /// Those for uprobes, by name.
    pub(super) uprobes: Vec<(Program, &'static str)>,
}

impl Bpf {
    /// Loads the object with these settings and a ring buffer of `ring_bytes`, which must be
    /// a power of two and a multiple of the page size.
    pub(super) fn load(
        config: Config,
        form: ProgramForm,
        ring_bytes: u32,
        programs: Programs,
    ) -> Result<Self, BpfError> {
        let Programs { waits, block, tcp, uprobes } = programs;
        lift_memlock_limit();
        let max_processes = max_processes();
        let has_locks = waits.is_some_and(|waits| waits.locks);
        let has_bios = block.is_some_and(|block| !block.has_io_start);
        let config = config.to_bytes();
        let object = match form {
            ProgramForm::Recent => RECENT,
            ProgramForm::Old => OLD,
        };
        let mut ebpf = EbpfLoader::new()
            // Task storage is for the programs alone.
            .allow_unsupported_maps()
            .override_global("CONFIG", config.as_slice(), true)
            .map_max_entries("EVENTS", ring_bytes)
            .map_max_entries("PROCESSES", max_processes)
            .map_max_entries("LOCKS", if has_locks { MAX_LOCKS } else { 1 })
            .map_max_entries("REQUESTS", if block.is_some() { MAX_REQUESTS } else { 1 })
            .map_max_entries("CONNECTIONS", if tcp.is_some() { MAX_CONNECTIONS } else { 1 })
            .map_max_entries("BIOS", if has_bios { MAX_REQUESTS } else { 1 })
            .load(object)
            .map_err(object_error)?;
        let program: &mut PerfEvent = ebpf
            .program_mut(CPU_SAMPLE)
            .and_then(|program| program.try_into().ok())
            .ok_or(BpfError::Missing { name: CPU_SAMPLE })?;
        program.load().map_err(|source| BpfError::Program { program: CPU_SAMPLE, source })?;
        let exec_error = attach_exec(&mut ebpf).err();
        let waits = waits.map(|waits| WaitPrograms::load(&mut ebpf, waits));
        let block = block.map(|block| BlockPrograms::load(&mut ebpf, block));
        let tcp = tcp.map(|hooks| TcpPrograms::load(&mut ebpf, hooks));
        // While it has all of its maps.
        let uprobes = uprobes
            .iter()
            .map(|(program, name)| {
                let loaded = match form {
                    ProgramForm::Recent => UprobeProgram::load(&mut ebpf, object, name),
                    ProgramForm::Old => Err(BpfError::TooOld { what: "what processes allocate" }),
                };
                (*program, loaded)
            })
            .collect();
        let memory_bytes = ebpf.maps().map(|(_, map)| map_memory_bytes(map)).sum();
        let events = RingBuf::try_from(take_map(&mut ebpf, "EVENTS")?)
            .map_err(|source| BpfError::Map { map: "EVENTS", source })?;
        let stats = PerCpuArray::try_from(take_map(&mut ebpf, "STATS")?)
            .map_err(|source| BpfError::Map { map: "STATS", source })?;
        let run_times = PerCpuArray::try_from(take_map(&mut ebpf, "RUN_TIMES")?)
            .map_err(|source| BpfError::Map { map: "RUN_TIMES", source })?;
        let unwind = UnwindMaps {
            chunks: ArrayOfMaps::try_from(take_map(&mut ebpf, "CHUNKS")?)
                .map_err(|source| BpfError::Map { map: "CHUNKS", source })?,
            shards: Array::try_from(take_map(&mut ebpf, "SHARDS")?)
                .map_err(|source| BpfError::Map { map: "SHARDS", source })?,
            processes: HashMap::try_from(take_map(&mut ebpf, "PROCESSES")?)
                .map_err(|source| BpfError::Map { map: "PROCESSES", source })?,
            max_processes,
        };
        Ok(Self {
            #[cfg(feature = "debug-log")]
            log: aya_log::EbpfLogger::init(&mut ebpf).map_err(|source| BpfError::Log { source })?,
            ebpf,
            exec_error,
            waits: Wanted::of(waits),
            growth: Wanted::not(),
            block: Wanted::of(block),
            tcp: Wanted::of(tcp),
            uprobes,
            oom_error: None,
            unwind: Some(unwind),
            run_times,
            events,
            stats,
            memory_bytes,
        })
    }

    /// The CPU sampler, to be attached to perf events.
    pub(super) fn cpu_program(&self) -> Result<BorrowedFd<'_>, BpfError> {
        let program: &PerfEvent = self
            .ebpf
            .program(CPU_SAMPLE)
            .and_then(|program| program.try_into().ok())
            .ok_or(BpfError::Missing { name: CPU_SAMPLE })?;
        let fd =
            program.fd().map_err(|source| BpfError::Program { program: CPU_SAMPLE, source })?;
        Ok(fd.as_fd())
    }

    /// Hands what the programs have logged to the agent's own log.
    #[cfg(feature = "debug-log")]
    pub(crate) fn flush_log(&mut self) {
        self.log.flush();
    }

    /// Samples as the kernel wrote them.
    pub(super) fn events_mut(&mut self) -> &mut RingBuf<MapData> {
        &mut self.events
    }

    /// The maps of the unwinder, for whoever fills them. `None` the second time.
    pub(super) fn take_unwind_maps(&mut self) -> Option<UnwindMaps> {
        self.unwind.take()
    }

    /// Programs that could do without, and why they have to.
    pub(super) fn refused(&self) -> impl Iterator<Item = (Program, &BpfError)> {
        let exec = self.exec_error.iter().map(|error| (Program::Exec, error));
        let oom = self.oom_error.iter().map(|error| (Program::OomVictim, error));
        let wanted = [
            (Program::SwitchOut, self.waits.error()),
            (Program::Growth, self.growth.error()),
            (Program::BlockStart, self.block.error()),
            (Program::TcpState, self.tcp.error()),
        ];
        let wanted = wanted.into_iter().filter_map(|(program, error)| Some((program, error?)));
        let waits = self.waits.get().into_iter().flat_map(WaitPrograms::refused);
        let block = self.block.get().into_iter().flat_map(BlockPrograms::refused);
        let tcp = self.tcp.get().into_iter().flat_map(TcpPrograms::refused);
        let uprobes = self.uprobes.iter();
        let uprobes =
            uprobes.filter_map(|(program, loaded)| Some((*program, loaded.as_ref().err()?)));
        exec.chain(oom).chain(wanted).chain(waits).chain(block).chain(tcp).chain(uprobes)
    }

    /// A program for uprobes, if it was asked for and the kernel takes it.
    pub(super) fn uprobe_program(&self, program: Program) -> Option<&UprobeProgram> {
        self.uprobes.iter().find(|(known, _)| *known == program)?.1.as_ref().ok()
    }

    /// Hands such a program out, to whoever attaches it.
    pub(super) fn take_uprobe_program(&mut self, program: Program) -> Option<UprobeProgram> {
        let is_it = |(known, loaded): &(Program, Result<_, _>)| *known == program && loaded.is_ok();
        let at = self.uprobes.iter().position(is_it)?;
        self.uprobes.swap_remove(at).1.ok()
    }

    /// Fails if such a program was asked for and the kernel refuses it.
    pub(super) fn require_uprobes(&mut self) -> Result<(), BpfError> {
        match self.uprobes.iter().position(|(_, loaded)| loaded.is_err()) {
            Some(at) => self.uprobes.swap_remove(at).1.map(drop),
            None => Ok(()),
        }
    }

    /// Loads the program that samples growth of memory.
    pub(super) fn load_growth(&mut self) {
        self.growth = Wanted::of(Some(growth::load(&mut self.ebpf)));
    }

    /// Growth was asked for, but this kernel does not let it be seen.
    pub(super) fn do_without_growth(&mut self, reason: BpfError) {
        self.growth.refuse(reason);
    }

    /// Begins to sample growth, if that was asked for.
    ///
    /// # Errors
    /// As of [`Self::start_waits`].
    pub(super) fn start_growth(&mut self, is_required: bool) -> Result<(), BpfError> {
        self.growth.start(is_required, |()| growth::start(&mut self.ebpf))
    }

    /// Requests to disks were asked for, but this kernel does not let them be seen.
    pub(super) fn do_without_block(&mut self, reason: BpfError) {
        self.block.refuse(reason);
    }

    /// Begins to follow requests to disks, if that was asked for.
    ///
    /// # Errors
    /// As of [`Self::start_waits`].
    pub(super) fn start_block(&mut self, is_required: bool) -> Result<(), BpfError> {
        self.block.start(is_required, |block| block.start(&mut self.ebpf))
    }

    /// Connections were asked for, but this kernel does not let them be seen.
    pub(super) fn do_without_tcp(&mut self, reason: BpfError) {
        self.tcp.refuse(reason);
    }

    /// Begins to follow connections, if that was asked for.
    ///
    /// # Errors
    /// As of [`Self::start_waits`].
    pub(super) fn start_tcp(&mut self, is_required: bool) -> Result<(), BpfError> {
        self.tcp.start(is_required, |tcp| tcp.start(&mut self.ebpf))
    }

    /// Says where somebody listens already: of connections that are there, which end has connected.
    pub(super) fn note_listeners(&mut self, listeners: &[(u32, u16)]) -> Result<(), BpfError> {
        let error = |source| BpfError::Map { map: "LISTENERS", source };
        let Some(map) = self.ebpf.map_mut("LISTENERS") else { return Ok(()) };
        let mut map: HashMap<&mut MapData, u64, u32> = HashMap::try_from(map).map_err(error)?;
        for &(netns, port) in listeners.iter().take(MAX_LISTENERS as usize) {
            map.insert(u64::from(netns) << 32 | u64::from(port), 1, 0).map_err(error)?;
        }
        Ok(())
    }

    /// The connections that are followed, by the kernel's address of the socket.
    pub(super) fn connections(&self) -> impl Iterator<Item = (u64, Connection)> {
        let map = self.tcp.get().and_then(|_| self.ebpf.map("CONNECTIONS"));
        let map: Option<HashMap<&MapData, u64, [u64; CONNECTION_WORDS]>> =
            map.and_then(|map| HashMap::try_from(map).ok());
        // Where one is gone when its turn comes, the kernel begins anew.
        let entries = map.iter().flat_map(|map| map.iter().filter_map(Result::ok));
        let entries: std::collections::HashMap<u64, _> =
            entries.take(2 * MAX_CONNECTIONS as usize).collect();
        entries.into_iter().map(|(socket, words)| (socket, Connection::from_words(&words)))
    }

    /// Begins to tell of processes that end for want of memory, if their growth is sampled.
    pub(super) fn start_oom_victims(&mut self) {
        if self.growth.get().is_some() {
            self.oom_error = oom::start(&mut self.ebpf).err();
        }
    }

    /// Waits were asked for, but this kernel does not let them be followed.
    pub(super) fn do_without_waits(&mut self, reason: BpfError) {
        self.waits.refuse(reason);
    }

    /// How the ends of waits are seen; `None` if they are not followed.
    pub(super) fn wait_end(&self) -> Option<WaitEnd> {
        self.waits.get().map(WaitPrograms::end)
    }

    /// Begins to follow waits, if that was asked for.
    ///
    /// # Errors
    /// When they cannot be followed and `is_required`; otherwise [`Self::refused`] has the
    /// reason.
    pub(super) fn start_waits(&mut self, is_required: bool) -> Result<(), BpfError> {
        self.waits.start(is_required, |waits| waits.start(&mut self.ebpf))
    }

    /// Has waits that go on written to the ring buffer.
    pub(super) fn report_waiting(&mut self) -> Result<(), BpfError> {
        match self.waits.get() {
            Some(waits) => waits.report(&mut self.ebpf),
            None => Ok(()),
        }
    }

    /// How long timed runs took: for each bucket that is not empty, its upper bound in
    /// nanoseconds and the number of runs.
    pub(super) fn run_times(&self, program: Program) -> Result<Vec<(u64, u64)>, BpfError> {
        let mut buckets = Vec::new();
        for bucket in 0..u64::from(RUN_TIME_BUCKETS) {
            let slot = run_time_slot(program, bucket * RUN_TIME_BUCKET_NS);
            let values = self
                .run_times
                .get(&slot, 0)
                .map_err(|source| BpfError::Map { map: "RUN_TIMES", source })?;
            let runs: u64 = values.iter().sum();
            if runs > 0 {
                buckets.push(((bucket + 1) * RUN_TIME_BUCKET_NS, runs));
            }
        }
        Ok(buckets)
    }

    /// Kernel memory of all maps, in bytes, as the kernel accounts for it.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Runs that the kernel has left out, as the program was under way on that CPU already, by the
    /// program's name in the object. Counted from Linux 5.12 on.
    pub(super) fn missed_runs(&self) -> Vec<(String, u64)> {
        let missed = |(name, program): (&str, &aya::programs::Program)| {
            let runs = fdinfo::number(program.fd().ok()?.as_fd(), "recursion_misses")?;
            (runs > 0).then(|| (name.to_owned(), runs))
        };
        self.ebpf.programs().filter_map(missed).collect()
    }

    /// What a program has counted so far.
    pub(super) fn program_stats(&self, program: Program) -> Result<ProgramStats, BpfError> {
        let mut stats = ProgramStats::default();
        for counter in Counter::ALL {
            let values = self
                .stats
                .get(&slot(program, counter), 0)
                .map_err(|source| BpfError::Map { map: "STATS", source })?;
            let total: u64 = values.iter().sum();
            match counter {
                Counter::Runs => stats.runs = total,
                Counter::TimedRuns => stats.timed_runs = total,
                Counter::TimedNs => stats.timed_ns = total,
                Counter::Samples => stats.samples = total,
                Counter::RingFull => stats.ring_full = values.iter().copied().collect(),
                Counter::Idle => stats.idle = total,
                Counter::Filtered => stats.filtered = total,
                Counter::NoScratch => stats.no_scratch = total,
                Counter::StackCopies => stats.stack_copies = total,
                Counter::StackCopiesRefused => stats.stack_copies_refused = total,
                Counter::Untracked => stats.untracked = total,
                Counter::Thinned => stats.thinned = total,
            }
        }
        Ok(stats)
    }
}

/// A program of the object that runs at a tracepoint.
pub(super) fn tracing_program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut BtfTracePoint, BpfError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(BpfError::Missing { name })
}

/// What it means that the kernel refuses a program.
pub(super) fn refused(program: &'static str) -> impl Fn(ProgramError) -> BpfError {
    move |source| BpfError::Program { program, source }
}

/// Without it stacks of a program's first moments end early.
fn attach_exec(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    const PROGRAM: &str = "process_exec";
    const TRACEPOINT: &str = "sched_process_exec";
    let program: &mut RawTracePoint = ebpf
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(BpfError::Missing { name: PROGRAM })?;
    let refused = |source| BpfError::Program { program: PROGRAM, source };
    program.load().map_err(refused)?;
    program.attach(TRACEPOINT).map_err(refused)?;
    Ok(())
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, BpfError> {
    ebpf.take_map(name).ok_or(BpfError::Missing { name })
}

fn object_error(source: EbpfError) -> BpfError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
    while let Some(error) = cause {
        let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if matches!(errno, Some(libc::EPERM | libc::EACCES)) {
            return BpfError::NotPermitted { source };
        }
        cause = error.source();
    }
    BpfError::Object { source }
}

/// The `memlock` line of a map's fdinfo: what the kernel has allocated for it.
fn map_memory_bytes(map: &Map) -> u64 {
    let data = match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::Unsupported(data) => data,
        _ => return 0,
    };
    fdinfo::number(data.fd(), "memlock").unwrap_or(0)
}
