//! Every map and global that the programs share with the agent.

#[cfg(not(feature = "old-kernels"))]
mod allocations;
mod io;
#[cfg(not(feature = "old-kernels"))]
mod tasks;
mod tcp;
#[cfg(not(feature = "old-kernels"))]
mod waits;

use aya_ebpf::{
    Global,
    btf_maps::{self, ArrayOfMaps},
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use everflame_agent_common::{
    block::BlockLayout,
    config::Config,
    limits::{CHUNK_PAGES, MAX_CHUNKS, MAX_PROCESSES},
    stats,
    tcp::TcpLayout,
    unwind::page::{Layout, Page, Shard, shard},
};

#[cfg(not(feature = "old-kernels"))]
pub use self::allocations::*;
#[cfg(not(feature = "old-kernels"))]
pub use self::tasks::*;
#[cfg(not(feature = "old-kernels"))]
pub use self::waits::*;
pub use self::{io::*, tcp::*};

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
    wait_samples: 0,
    task_cpu_time_offset: 0,
    task_pid_offset: 0,
    task_tgid_offset: 0,
    task_run_delay_offset: 0,
    task_queued_offset: 0,
    task_cfs_rq_offset: 0,
    cfs_rq_rq_offset: 0,
    rq_clock_offset: 0,
    locks: 0,
    growth_period_bytes: 0,
    task_mm_offset: 0,
    task_leader_offset: 0,
    mm_pages_offset: 0,
    mm_pages_stride: 0,
    page_bytes: 0,
    growth_samples: 0,
    window_period_bytes: 0,
    inode_superblock_offset: 0,
    superblock_device_offset: 0,
    block: BlockLayout::NONE,
    tcp: TcpLayout::NONE,
});

/// One of the settings. Not [`Global::load`], which reads all of them each time.
macro_rules! config {
    ($($field:ident).+) => {{
        let config =
            (&raw const $crate::maps::CONFIG).cast::<everflame_agent_common::config::Config>();
        // SAFETY: a `Global` is nothing but its value. It is not what the compiler sees here.
        unsafe { (&raw const (*config)$(.$field)+).read_volatile() }
    }};
}
pub(crate) use config;

/// Samples on their way to the agent, which sets the real size.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// How many samples each CPU is handing over, one having interrupted the other.
#[map]
pub static SUBMITTING: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

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
