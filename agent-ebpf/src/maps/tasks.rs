//! What is kept at each task. Kernels before 5.13 have no such maps for tracing programs.

use aya_ebpf::macros::btf_map;
use everflame_agent_common::{cpu_time::CpuTime, growth::Growth, wait::Thread};

use crate::task_storage::TaskStorage;

/// What CPU samples of each thread stand for.
#[btf_map]
pub static CPU_TIMES: TaskStorage<CpuTime> = TaskStorage::new();

/// When each thread left its CPU.
#[btf_map]
pub static THREADS: TaskStorage<Thread> = TaskStorage::new();

/// How much memory each process has, at its first thread.
#[btf_map]
pub static GROWTH: TaskStorage<Growth> = TaskStorage::new();
