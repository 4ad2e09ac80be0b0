//! Every map and global that the programs share with the agent.

use aya_ebpf::{
    Global,
    btf_maps::{self, ArrayOfMaps},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use everflame_agent_common::{
    config::Config,
    limits::{CHUNK_PAGES, MAX_CHUNKS, MAX_LOCKS, MAX_PROCESSES, MAX_THREADS},
    lock::{Lock, LockKey},
    stats,
    unwind::page::{Layout, Page, Shard, shard},
    wait::Thread,
};

use crate::{
    sample::Scratch,
    unwind::{RuleCache, Walk},
};

/// Written by the agent before the programs are loaded.
#[unsafe(no_mangle)]
pub static CONFIG: Global<Config> = Global::new(Config {
    cpu_period_ns: 0,
    target_pid: 0,
    wakeup_bytes: 0,
    max_kernel_frames: 0,
    stack_copies_per_second: 0,
    task_stack_offset: 0,
    stack_registers_offset: 0,
    wait_period_ns: 0,
    task_pid_offset: 0,
    task_tgid_offset: 0,
    locks: 0,
    unused: 0,
});

/// Samples on their way to the agent, which sets the real size.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Counters; see `everflame_agent_common::stats`.
#[map]
pub static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(stats::SLOTS, 0);

/// How long timed runs took; see `everflame_agent_common::stats`.
#[map]
pub static RUN_TIMES: PerCpuArray<u64> = PerCpuArray::with_max_entries(stats::RUN_TIME_SLOTS, 0);

/// Pages of rules and layouts. A page's id is its chunk's index times the pages of a chunk,
/// plus its place there; the agent adds chunks as it needs them. That all have the same size
/// lets the kernel compile lookups into the programs.
#[btf_map]
pub static CHUNKS: ArrayOfMaps<
    btf_maps::Array<Page, { CHUNK_PAGES as usize }>,
    { MAX_CHUNKS as usize },
> = ArrayOfMaps::new();

/// What is loaded of each file.
#[map]
pub static SHARDS: Array<Shard> = Array::with_max_entries(shard::SLOTS, 0);

/// The memory layout of each process, by process id.
#[map]
pub static PROCESSES: HashMap<u32, Layout> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// Where the CPU sampler builds its record. Each program type has scratch memory of its own,
/// as the sampler's interrupt can run in the middle of another program.
#[map]
pub static CPU_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The CPU sampler's walk.
#[map]
pub static CPU_WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Rules that the CPU sampler has found.
#[map]
pub static CPU_RULES: PerCpuArray<RuleCache> = PerCpuArray::with_max_entries(1, 0);

/// When each thread left its CPU, by thread id. The agent sets the real size.
#[map]
pub static THREADS: HashMap<u32, Thread> = HashMap::with_max_entries(MAX_THREADS, 0);

/// When each CPU last switched from one task to another. One moment for both, as in the
/// kernel's own accounts: what the switch itself takes is not lost between them, nor counted as
/// waiting of both.
#[map]
pub static SWITCHED_NS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where samples of waits are built, with interrupts on but preemption off.
#[map]
pub static WAIT_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The walk of a wait's stack.
#[map]
pub static WAIT_WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Rules that were found for waits.
#[map]
pub static WAIT_RULES: PerCpuArray<RuleCache> = PerCpuArray::with_max_entries(1, 0);

/// Where records of waits that go on are built. One for all CPUs: they are asked for by one
/// thread of the agent.
#[map]
pub static WAITING_SCRATCH: Array<Scratch> = Array::with_max_entries(1, 0);

/// The registers of threads that wait.
#[map]
pub static WAITING_WALK: Array<Walk> = Array::with_max_entries(1, 0);

/// Locks that threads wait for, or have waited for. The agent sets the real size.
#[map]
pub static LOCKS: LruHashMap<LockKey, Lock> = LruHashMap::with_max_entries(MAX_LOCKS, 0);

/// Where samples of releases are built, with interrupts off.
#[map]
pub static RELEASE_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The walk of a stack that releases a lock.
#[map]
pub static RELEASE_WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Rules that were found for releases.
#[map]
pub static RELEASE_RULES: PerCpuArray<RuleCache> = PerCpuArray::with_max_entries(1, 0);
