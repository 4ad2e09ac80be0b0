//! What the programs that follow requests to disks need.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, LruHashMap, PerCpuArray},
};
use everflame_agent_common::{
    block::{Flusher, Request},
    limits::{MARKS, MAX_DISKS, MAX_REQUESTS, MAX_SYNCS},
    share::Share,
};

use crate::{
    marks::Marks,
    sample::Scratch,
    unwind::{RuleCache, Walk},
};

/// Requests that are under way, of those that were chosen, by the kernel's address. The agent sets the real
/// size.
#[map]
pub static REQUESTS: HashMap<u64, Request> = HashMap::with_max_entries(MAX_REQUESTS, 0);

/// Which requests are not among them.
#[map]
pub static REQUEST_MARKS: Marks = Marks::with_max_entries(MARKS, 0);

/// What requests are going to be made of, where those themselves are not seen when they are made. Of
/// some nothing more is heard.
#[map]
pub static BIOS: LruHashMap<u64, Request> = LruHashMap::with_max_entries(MAX_REQUESTS, 0);

/// The last write to each disk that wants a flush.
#[map]
pub static FLUSHERS: LruHashMap<u64, Flusher> = LruHashMap::with_max_entries(MAX_DISKS, 0);

/// Since when tasks make files durable, by process and thread.
#[map]
pub static SYNCS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(MAX_SYNCS, 0);

/// How many requests are chosen.
#[map]
pub static BLOCK_SHARE: PerCpuArray<Share> = PerCpuArray::with_max_entries(1, 0);

/// How many want the memory below.
#[map]
pub static IO_SAMPLING: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where samples of those that want something of a disk or of the network are built.
#[map]
pub static IO_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The walk of such a stack.
#[map]
pub static IO_WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// Rules that were found for them.
#[map]
pub static IO_RULES: PerCpuArray<RuleCache> = PerCpuArray::with_max_entries(1, 0);
