//! What the program that samples allocations needs.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use everflame_agent_common::allocation::Countdown;

use crate::{
    sample::Scratch,
    unwind::{RuleCache, Walk},
};

/// How far each CPU is from its next sample.
#[map]
pub static ALLOCATION_COUNTDOWN: PerCpuArray<Countdown> = PerCpuArray::with_max_entries(1, 0);

/// How many want the memory below.
#[map]
pub static ALLOCATION_SAMPLING: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where samples of allocations are built.
#[map]
pub static ALLOCATION_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The walk of such a stack.
#[map]
pub static ALLOCATION_WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Rules that were found for them.
#[map]
pub static ALLOCATION_RULES: PerCpuArray<RuleCache> = PerCpuArray::with_max_entries(1, 0);
