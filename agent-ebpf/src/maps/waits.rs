//! What the programs that follow waits need.

use aya_ebpf::{
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray},
};
use everflame_agent_common::{
    growth::GrowthSeen,
    limits::MAX_LOCKS,
    lock::{Lock, LockKey},
};

use crate::{
    kernel_lock::Spin,
    sample::Scratch,
    unwind::{RuleCache, Walk},
    wait::{Ended, SwitchClock},
};

/// When each CPU last switched from one task to another.
#[map]
pub static SWITCH_CLOCK: PerCpuArray<SwitchClock> = PerCpuArray::with_max_entries(1, 0);

/// The wait that has just ended on each CPU.
#[map]
pub static ENDED: PerCpuArray<Ended> = PerCpuArray::with_max_entries(1, 0);

/// Where samples of waits are built, before the task that has just got the CPU can lose it again.
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

/// Which lock of the kernel each CPU spins for.
#[map]
pub static SPINS: PerCpuArray<Spin> = PerCpuArray::with_max_entries(1, 0);

/// What growth each CPU has seen last.
#[map]
pub static GROWTH_SEEN: PerCpuArray<GrowthSeen> = PerCpuArray::with_max_entries(1, 0);

/// Whether the memory below is in use.
#[map]
pub static LOCK_SAMPLING: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where samples of releases are built, and of CPUs that spin.
#[map]
pub static LOCK_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The walk of such a stack.
#[map]
pub static LOCK_WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Rules that were found for them.
#[map]
pub static LOCK_RULES: PerCpuArray<RuleCache> = PerCpuArray::with_max_entries(1, 0);
