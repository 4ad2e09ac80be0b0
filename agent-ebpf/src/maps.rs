//! Every map and global that the programs share with the agent.

use aya_ebpf::{
    Global,
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use everflame_agent_common::{config::Config, stats};

use crate::sample::Scratch;

/// Written by the agent before the programs are loaded.
#[unsafe(no_mangle)]
pub static CONFIG: Global<Config> = Global::new(Config {
    cpu_period_ns: 0,
    target_pid: 0,
    wakeup_bytes: 0,
    max_kernel_frames: 0,
    reserved: 0,
});

/// Samples on their way to the agent, which sets the real size.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Counters; see `everflame_agent_common::stats`.
#[map]
pub static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(stats::SLOTS, 0);

/// Where the CPU sampler builds its record. Each program type has a scratch buffer of its
/// own, as the sampler's interrupt can run in the middle of another program.
#[map]
pub static CPU_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
