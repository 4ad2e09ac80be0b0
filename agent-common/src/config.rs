//! Settings that the agent writes into the programs' read-only data before it loads them.

use crate::block::BlockLayout;
use crate::tcp::TcpLayout;

/// Settings of all programs; a global named `CONFIG` in the BPF object.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What one CPU sample stands for, in nanoseconds: 10⁹ / rate in Hz.
    pub cpu_period_ns: u64,
    /// Sample this process only; 0 samples all.
    pub target_pid: u32,
    /// The reader polls; it is woken only when this many bytes wait in the ring buffer.
    pub wakeup_bytes: u32,
    /// Frames that the kernel's own walker gives at most (`kernel.perf_event_max_stack`).
    pub max_kernel_frames: u32,
    /// Copies of stacks a second, on each CPU, at most; see [`crate::event`].
    pub stack_copies_per_second: u32,
    /// Offset of `task_struct.stack`, and of the saved user registers in what it points to,
    /// for kernels that have no helper to find them.
    pub task_stack_offset: u32,
    /// See `task_stack_offset`.
    pub stack_registers_offset: u32,
    /// One wait is sampled in this much time that a thread waits, in nanoseconds; longer
    /// waits always are.
    pub wait_period_ns: u64,
    /// Samples of waits in a tenth of a second, on each CPU, at most, but for long ones; see
    /// [`crate::wait::Thinning`].
    pub wait_samples: u32,
    /// Offset of `task_struct.se.sum_exec_runtime`, the scheduler's account of a task's time on
    /// CPUs; 0 if samples do without, see [`crate::cpu_time`].
    pub task_cpu_time_offset: u32,
    /// Offset of `task_struct.pid`, the id of a thread.
    pub task_pid_offset: u32,
    /// Offset of `task_struct.tgid`, the id of a process.
    pub task_tgid_offset: u32,
    /// Offset of `task_struct.sched_info.run_delay`; 0 if the kernel does not keep it.
    pub task_run_delay_offset: u32,
    /// Offset of `task_struct.sched_info.last_queued`; likewise.
    pub task_queued_offset: u32,
    /// Offset of `task_struct.se.cfs_rq`; 0 if the kernel does not keep it.
    pub task_cfs_rq_offset: u32,
    /// Offset of `cfs_rq.rq`.
    pub cfs_rq_rq_offset: u32,
    /// Offset of `rq.clock`.
    pub rq_clock_offset: u32,
    /// Not 0: locks that threads wait for are followed, and who releases them.
    pub locks: u32,
    /// One sample in this much growth of a process's memory, in bytes; less than 2^32.
    pub growth_period_bytes: u64,
    /// Offset of `task_struct.mm`.
    pub task_mm_offset: u32,
    /// Offset of `task_struct.group_leader`.
    pub task_leader_offset: u32,
    /// Offset in `mm_struct` of the first counter of pages.
    pub mm_pages_offset: u32,
    /// Bytes from one of these counters to the next.
    pub mm_pages_stride: u32,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Samples of growth in a second, on each CPU, at most; see `wait_samples`.
    pub growth_samples: u32,
    /// One sample in this much that processes allocate while a window is open on them, in bytes; at
    /// most [`MAX_PERIOD`](crate::allocation::MAX_PERIOD).
    pub window_period_bytes: u64,
    /// Offset of `inode.i_sb`.
    pub inode_superblock_offset: u32,
    /// Offset of `super_block.s_dev`.
    pub superblock_device_offset: u32,
    /// Of requests to disks.
    pub block: BlockLayout,
    /// Of TCP connections.
    pub tcp: TcpLayout,
}

/// Bytes of a [`Config`].
pub const CONFIG_BYTES: usize = TCP_AT + size_of::<TcpLayout>();

/// Where the parts begin that are structures of their own.
const BLOCK_AT: usize = 128;
const TCP_AT: usize = BLOCK_AT + size_of::<BlockLayout>();

const _: () = assert!(size_of::<Config>() == CONFIG_BYTES);

impl Config {
    /// The bytes that the loader puts in place of the programs' global, in the byte order
    /// of the host.
    pub fn to_bytes(self) -> [u8; CONFIG_BYTES] {
        let mut bytes = [0; CONFIG_BYTES];
        bytes[0..8].copy_from_slice(&self.cpu_period_ns.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.target_pid.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.wakeup_bytes.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.max_kernel_frames.to_ne_bytes());
        bytes[20..24].copy_from_slice(&self.stack_copies_per_second.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.task_stack_offset.to_ne_bytes());
        bytes[28..32].copy_from_slice(&self.stack_registers_offset.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.wait_period_ns.to_ne_bytes());
        bytes[40..44].copy_from_slice(&self.wait_samples.to_ne_bytes());
        bytes[44..48].copy_from_slice(&self.task_cpu_time_offset.to_ne_bytes());
        bytes[48..52].copy_from_slice(&self.task_pid_offset.to_ne_bytes());
        bytes[52..56].copy_from_slice(&self.task_tgid_offset.to_ne_bytes());
        bytes[56..60].copy_from_slice(&self.task_run_delay_offset.to_ne_bytes());
        bytes[60..64].copy_from_slice(&self.task_queued_offset.to_ne_bytes());
        bytes[64..68].copy_from_slice(&self.task_cfs_rq_offset.to_ne_bytes());
        bytes[68..72].copy_from_slice(&self.cfs_rq_rq_offset.to_ne_bytes());
        bytes[72..76].copy_from_slice(&self.rq_clock_offset.to_ne_bytes());
        bytes[76..80].copy_from_slice(&self.locks.to_ne_bytes());
        bytes[80..88].copy_from_slice(&self.growth_period_bytes.to_ne_bytes());
        bytes[88..92].copy_from_slice(&self.task_mm_offset.to_ne_bytes());
        bytes[92..96].copy_from_slice(&self.task_leader_offset.to_ne_bytes());
        bytes[96..100].copy_from_slice(&self.mm_pages_offset.to_ne_bytes());
        bytes[100..104].copy_from_slice(&self.mm_pages_stride.to_ne_bytes());
        bytes[104..108].copy_from_slice(&self.page_bytes.to_ne_bytes());
        bytes[108..112].copy_from_slice(&self.growth_samples.to_ne_bytes());
        bytes[112..120].copy_from_slice(&self.window_period_bytes.to_ne_bytes());
        bytes[120..124].copy_from_slice(&self.inode_superblock_offset.to_ne_bytes());
        bytes[124..BLOCK_AT].copy_from_slice(&self.superblock_device_offset.to_ne_bytes());
        let words = self.block.words().into_iter().chain(self.tcp.words());
        for (bytes, word) in bytes[BLOCK_AT..].chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn bytes_are_where_the_programs_read_them() {
        let config = Config {
            cpu_period_ns: 1,
            target_pid: 2,
            wakeup_bytes: 3,
            max_kernel_frames: 4,
            stack_copies_per_second: 5,
            task_stack_offset: 6,
            stack_registers_offset: 7,
            wait_period_ns: 8,
            task_pid_offset: 9,
            task_tgid_offset: 10,
            task_run_delay_offset: 11,
            task_queued_offset: 12,
            task_cfs_rq_offset: 13,
            cfs_rq_rq_offset: 14,
            rq_clock_offset: 15,
            locks: 16,
            wait_samples: 17,
            task_cpu_time_offset: 18,
            growth_period_bytes: 19,
            task_mm_offset: 20,
            task_leader_offset: 21,
            mm_pages_offset: 22,
            mm_pages_stride: 23,
            page_bytes: 24,
            growth_samples: 25,
            window_period_bytes: 26,
            inode_superblock_offset: 29,
            superblock_device_offset: 30,
            block: BlockLayout { has_io_start: 27, samples: 28, ..BlockLayout::default() },
            tcp: TcpLayout { remote_offset: 31, samples: 32, ..TcpLayout::default() },
        };
        let bytes = config.to_bytes();
        assert_eq!(bytes.len(), size_of::<Config>());
        assert_eq!(bytes[offset_of!(Config, cpu_period_ns)..][..8], 1u64.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, target_pid)..][..4], 2u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, wakeup_bytes)..][..4], 3u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, max_kernel_frames)..][..4], 4u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, stack_copies_per_second)..][..4], 5u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_stack_offset)..][..4], 6u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, stack_registers_offset)..][..4], 7u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, wait_period_ns)..][..8], 8u64.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_pid_offset)..][..4], 9u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_tgid_offset)..][..4], 10u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_run_delay_offset)..][..4], 11u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_queued_offset)..][..4], 12u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_cfs_rq_offset)..][..4], 13u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, cfs_rq_rq_offset)..][..4], 14u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, rq_clock_offset)..][..4], 15u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, locks)..][..4], 16u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, wait_samples)..][..4], 17u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_cpu_time_offset)..][..4], 18u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, growth_period_bytes)..][..8], 19u64.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_mm_offset)..][..4], 20u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, task_leader_offset)..][..4], 21u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, mm_pages_offset)..][..4], 22u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, mm_pages_stride)..][..4], 23u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, page_bytes)..][..4], 24u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, growth_samples)..][..4], 25u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, window_period_bytes)..][..8], 26u64.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, inode_superblock_offset)..][..4], 29u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, superblock_device_offset)..][..4], 30u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, block.has_io_start)..][..4], 27u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, block.samples)..][..4], 28u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, tcp.remote_offset)..][..4], 31u32.to_ne_bytes());
        assert_eq!(bytes[offset_of!(Config, tcp.samples)..][..4], 32u32.to_ne_bytes());
    }
}
