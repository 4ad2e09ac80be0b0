//! What the host is like: its CPUs, its clock, and limits that collection depends on.

use std::os::unix::fs::MetadataExt as _;

use everflame_agent_common::limits::{MAX_KERNEL_FRAMES, MAX_PROCESSES};

use super::CollectError;
use crate::process::running_pids;

/// The inode of the initial pid namespace: `PROC_PID_INIT_INO` of include/linux/proc_ns.h.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Ring buffer for each CPU: half a second of the deepest stacks at 97 Hz. It is emptied four
/// times a second, and as soon as it is half full.
const RING_BYTES_PER_CPU: u32 = 128 * 1024;
const RING_BYTES_MIN: u32 = 1024 * 1024;
const RING_BYTES_MAX: u32 = 64 * 1024 * 1024;

/// More where live heaps are followed: programs allocate in bursts, and an object whose end is lost looks
/// like a leak.
const RING_BYTES_FACTOR_LIVE: u32 = 4;
/// Ring buffer where nothing is sampled but what is all handed over: a program that allocates 64 KiB at a time,
/// each of them a sample, makes some hundred thousand samples a second of 200 bytes; ten thousand connections a
/// second are 1.5 KiB each with both of their ends.
pub(super) const RING_BYTES_FOR_ALL: u32 = 32 * 1024 * 1024;

/// Bytes of ring buffer for this many CPUs.
pub(super) fn ring_bytes(cpus: usize, has_live: bool) -> u32 {
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let factor = if has_live { RING_BYTES_FACTOR_LIVE } else { 1 };
    RING_BYTES_PER_CPU
        .saturating_mul(cpus)
        .checked_next_power_of_two()
        .unwrap_or(RING_BYTES_MAX)
        .max(RING_BYTES_MIN)
        .saturating_mul(factor)
        .min(RING_BYTES_MAX)
}

/// Processes whose layouts have room: four times as many as run now, within bounds. An entry
/// has 112 bytes, used or not.
pub(super) fn max_processes() -> u32 {
    const MIN: u32 = 4096;
    let running = running_pids().map_or(0, Iterator::count);
    u32::try_from(running).unwrap_or(u32::MAX).saturating_mul(4).clamp(MIN, MAX_PROCESSES)
}

/// Whether process ids mean the same to this process as to the kernel.
pub(super) fn is_initial_pid_namespace() -> bool {
    // Where /proc is not mounted there are worse problems, with errors of their own.
    let Ok(namespace) = std::fs::metadata("/proc/self/ns/pid") else { return true };
    namespace.ino() == INITIAL_PID_NAMESPACE
}

/// How deep the kernel's own walker goes, as far as a sample has room.
pub(super) fn max_kernel_frames() -> u32 {
    let limit = u32::try_from(MAX_KERNEL_FRAMES).unwrap_or(u32::MAX);
    std::fs::read_to_string("/proc/sys/kernel/perf_event_max_stack")
        .ok()
        .and_then(|frames| frames.trim().parse().ok())
        .map_or(limit, |frames: u32| frames.min(limit))
}

/// Now, on the clock that events carry.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// CPUs that are online.
pub(super) fn online_cpus() -> Result<Vec<u32>, CollectError> {
    aya::util::online_cpus().map_err(|(path, source)| CollectError::OnlineCpus { path, source })
}
