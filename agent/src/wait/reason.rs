//! The reason for a wait, from its kernel stack or else from its system call.

use super::Wait;
use super::kernel_functions::{self, Decision};
use super::{names, syscalls, task_state};

/// What a thread waited for: the `reason` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A lock or a condition in user space (futex, System V semaphore), a file lock, or a lock
    /// within the kernel (mutex, rwsem, a socket's owner).
    Lock,
    /// A block device: reads, writes, flushes, queues of requests, throttling of writers.
    Disk,
    /// A file system's own doings, not plain block I/O: a journal commit, a transaction, the
    /// answer of a server (NFS, CIFS, Ceph) or of a FUSE daemon.
    FileSystem,
    /// A socket: receive, send, accept, connect; and epoll, which waits for them in nearly all
    /// programs.
    Network,
    /// Several event sources at once: poll, select, completions of an `io_uring`.
    Poll,
    /// A time: nanosleep, a timerfd, poll and select without any file.
    Sleep,
    /// A child process: wait4, waitid, vfork.
    Child,
    /// Memory that had to be brought in first: a page of a mapped file, swap, userfaultfd,
    /// migration; also when it ends in block I/O. Contention for the address space's lock
    /// within a fault is [`Reason::Lock`]: more memory would not help it.
    PageFault,
    /// A CPU: preempted, or woken and not running yet.
    RunQueue,
    /// Anything else: pipes, terminals, eventfd, inotify, message queues, signals, job control,
    /// waits of the kernel for itself. A pipe is neither file system nor network, and its other
    /// end can be anything.
    Other,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Lock,
        Self::Disk,
        Self::FileSystem,
        Self::Network,
        Self::Poll,
        Self::Sleep,
        Self::Child,
        Self::PageFault,
        Self::RunQueue,
        Self::Other,
    ];

    /// The value of the `reason` label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Disk => "disk",
            Self::FileSystem => "filesystem",
            Self::Network => "network",
            Self::Poll => "poll",
            Self::Sleep => "sleep",
            Self::Child => "child",
            Self::PageFault => "pagefault",
            Self::RunQueue => "runqueue",
            Self::Other => "other",
        }
    }
}

/// The reason for `wait`. `kernel` are the names of the kernel's functions, leaf first, as
/// kallsyms gives them (suffixes such as `.isra.0` do not matter); empty where it gives none.
///
/// Stacks taken from another task (`/proc/PID/stack`, `bpf_get_task_stack`) lack the functions
/// of the scheduler, and with them those of kernel locks; both shapes are understood.
#[must_use]
pub fn classify(wait: &Wait, kernel: &[&str]) -> Reason {
    if wait.is_preempted || wait.is_runqueue || wait.task_state == 0 {
        return Reason::RunQueue;
    }
    if wait.task_state & (task_state::STOPPED_OR_TRACED | task_state::FROZEN) != 0 {
        return Reason::Other;
    }
    if wait.task_state & task_state::RTLOCK_WAIT != 0 {
        return Reason::Lock;
    }
    match from_kernel(kernel).unwrap_or_else(|| without_rows(wait, kernel)) {
        Reason::Poll => syscalls::without_files(wait).unwrap_or(Reason::Poll),
        reason => reason,
    }
}

/// The reason where the kernel's functions say nothing or are not known.
fn without_rows(wait: &Wait, kernel: &[&str]) -> Reason {
    match wait.syscall {
        Some(_) => syscalls::reason(wait),
        // Outside system calls, a program waits uninterruptibly for nothing but its memory.
        None if kernel.is_empty() && wait.is_uninterruptible() && !wait.is_kernel_thread => {
            Reason::PageFault
        }
        None => Reason::Other,
    }
}

/// The innermost function that the table knows decides, but for what only its callers tell:
/// that the page is for a fault, or that the file is not on a disk of this host.
fn from_kernel(kernel: &[&str]) -> Option<Reason> {
    let mut innermost = None;
    let leaf = kernel.first().map(|symbol| names::kernel_name(symbol));
    if leaf.is_some_and(kernel_functions::sleeps_in_locks_only) {
        return Some(Reason::Lock);
    }
    for name in kernel.iter().map(|symbol| names::kernel_name(symbol)) {
        match kernel_functions::decision(name) {
            Some(Decision::Reason(Reason::Lock)) if innermost.is_none() => {
                return Some(Reason::Lock);
            }
            Some(Decision::Reason(reason)) => innermost = innermost.or(Some(reason)),
            Some(Decision::Fault) => return Some(Reason::PageFault),
            Some(Decision::RemoteFile) => {
                innermost = match innermost {
                    None | Some(Reason::Disk) => Some(Reason::FileSystem),
                    decided => decided,
                };
            }
            None => {}
        }
    }
    innermost
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 6.18's stacks as `sched_switch` saw them; those of older kernels by their sources.
    #[rustfmt::skip]
    const STACKS: &[(&str, Reason)] = &[
        // 6.18
        ("__schedule schedule futex_do_wait __futex_wait futex_wait do_futex __x64_sys_futex", Reason::Lock),
        ("__schedule schedule schedule_preempt_disabled rwsem_down_write_slowpath down_write do_unlinkat", Reason::Lock),
        ("__schedule schedule schedule_preempt_disabled rwsem_down_write_slowpath down_write_killable vm_mmap_pgoff", Reason::Lock),
        ("__schedule schedule schedule_preempt_disabled __mutex_lock.constprop.0 __lru_add_drain_all generic_fadvise", Reason::Lock),
        ("__schedule schedule locks_lock_inode_wait __do_sys_flock", Reason::Lock),
        ("__schedule schedule schedule_preempt_disabled rwsem_down_read_slowpath down_read lock_mm_and_find_vma exc_page_fault asm_exc_page_fault", Reason::Lock),
        ("__schedule schedule schedule_timeout io_schedule_timeout __iomap_dio_rw iomap_dio_rw ext4_file_read_iter vfs_read", Reason::Disk),
        ("__schedule schedule io_schedule folio_wait_bit_common filemap_get_pages filemap_read vfs_read __x64_sys_pread64", Reason::Disk),
        ("__schedule schedule io_schedule folio_wait_bit folio_wait_writeback __filemap_fdatawait_range ext4_sync_file do_fsync", Reason::Disk),
        ("__schedule schedule schedule_timeout io_schedule_timeout wait_for_completion_io_timeout submit_bio_wait blkdev_issue_flush ext4_sync_file", Reason::Disk),
        ("__schedule schedule io_schedule bit_wait_io __wait_on_bit out_of_line_wait_on_bit __ext4_find_entry ext4_lookup path_openat", Reason::Disk),
        ("__schedule schedule io_schedule folio_wait_bit_common filemap_read_folio filemap_fault __do_fault do_fault __handle_mm_fault handle_mm_fault exc_page_fault asm_exc_page_fault", Reason::PageFault),
        ("__schedule schedule io_schedule folio_wait_bit_common filemap_fault __do_fault handle_mm_fault exc_page_fault asm_exc_page_fault elf_load load_elf_binary", Reason::PageFault),
        ("__schedule schedule wb_wait_for_completion sync_inodes_sb __iterate_supers ksys_sync", Reason::FileSystem),
        ("__schedule schedule schedule_timeout wait_for_completion __flush_workqueue ext4_sync_fs __iterate_supers ksys_sync", Reason::FileSystem),
        ("__schedule schedule schedule_timeout unix_stream_read_generic unix_stream_recvmsg sock_recvmsg __sys_recvfrom", Reason::Network),
        ("__schedule schedule schedule_hrtimeout_range_clock do_epoll_wait do_epoll_pwait.part.0 __x64_sys_epoll_pwait", Reason::Network),
        ("__schedule schedule schedule_hrtimeout_range_clock poll_schedule_timeout.constprop.0 do_select core_sys_select", Reason::Poll),
        ("__schedule schedule do_nanosleep hrtimer_nanosleep common_nsleep __x64_sys_clock_nanosleep", Reason::Sleep),
        ("__schedule schedule schedule_timeout __wait_for_common wait_for_completion_state kernel_clone __x64_sys_vfork", Reason::Child),
        ("__schedule schedule do_wait kernel_wait4", Reason::Child),
        ("__schedule schedule anon_pipe_read vfs_read ksys_read", Reason::Other),
        ("__schedule schedule worker_thread kthread ret_from_fork ret_from_fork_asm", Reason::Other),
        ("__schedule schedule schedule_timeout wait_for_completion synchronize_rcu_normal map_update_elem", Reason::Other),
        // 6.1 and 6.12
        ("__schedule schedule futex_wait_queue futex_wait do_futex", Reason::Lock),
        ("__schedule schedule schedule_hrtimeout_range ep_poll do_epoll_wait", Reason::Network),
        ("__schedule schedule schedule_timeout inet_csk_accept inet_accept do_accept __sys_accept4", Reason::Network),
        ("__schedule schedule jbd2_log_wait_commit ext4_fsync_journal ext4_sync_file", Reason::FileSystem),
        ("__schedule schedule request_wait_answer fuse_simple_request fuse_lookup_name", Reason::FileSystem),
        ("__schedule schedule io_schedule folio_wait_bit_common folio_wait_writeback nfs_wb_all nfs4_file_flush", Reason::FileSystem),
        ("__schedule schedule rpc_wait_bit_killable __wait_on_bit out_of_line_wait_on_bit __rpc_execute nfs4_proc_getattr", Reason::FileSystem),
        ("__schedule schedule io_cqring_wait __do_sys_io_uring_enter", Reason::Poll),
        // 5.10
        ("__schedule schedule futex_wait_queue_me futex_wait do_futex", Reason::Lock),
        ("__schedule schedule rwsem_down_write_slowpath down_write path_openat", Reason::Lock),
        ("__schedule schedule io_schedule wait_on_page_bit_common generic_file_buffered_read ext4_file_read_iter", Reason::Disk),
        ("__schedule schedule io_schedule blk_mq_get_tag __blk_mq_alloc_request blk_mq_submit_bio", Reason::Disk),
        ("__schedule schedule io_schedule wait_on_page_bit_common filemap_fault ext4_filemap_fault __do_fault handle_mm_fault exc_page_fault", Reason::PageFault),
        ("__schedule schedule io_schedule __lock_page_or_retry do_swap_page handle_mm_fault do_user_addr_fault", Reason::PageFault),
        ("__schedule schedule wait_transaction_locked add_transaction_credits start_this_handle", Reason::FileSystem),
        ("__schedule schedule schedule_timeout wait_woken sk_wait_data tcp_recvmsg inet_recvmsg", Reason::Network),
        ("__schedule schedule schedule_hrtimeout_range_clock poll_schedule_timeout do_sys_poll", Reason::Poll),
        ("__schedule schedule pipe_read new_sync_read vfs_read", Reason::Other),
        // Stacks of other tasks, without the scheduler's functions.
        ("folio_wait_bit_common filemap_fault __do_fault handle_mm_fault exc_page_fault", Reason::PageFault),
        ("lock_mm_and_find_vma exc_page_fault asm_exc_page_fault", Reason::Lock),
        ("do_unlinkat __x64_sys_unlink do_syscall_64", Reason::Lock),
        ("__iomap_dio_rw iomap_dio_rw ext4_file_read_iter vfs_read", Reason::Disk),
        ("hrtimer_nanosleep common_nsleep __x64_sys_clock_nanosleep", Reason::Sleep),
        // arm64
        ("__switch_to __schedule schedule io_schedule folio_wait_bit_common filemap_fault handle_mm_fault do_page_fault do_translation_fault do_mem_abort el0_da", Reason::PageFault),
    ];

    fn waiting(task_state: u32) -> Wait {
        Wait { task_state, ..Wait::default() }
    }

    fn in_call(number: libc::c_long, task_state: u32, args: [u64; 6]) -> Wait {
        Wait { syscall: Some(number as u32), args, ..waiting(task_state) }
    }

    #[test]
    fn kernel_stacks_tell_the_reason() {
        for &(stack, expected) in STACKS {
            let kernel = stack.split(' ').collect::<Vec<_>>();
            for state in [1, 2, 0x2001, 0x102] {
                assert_eq!(classify(&waiting(state), &kernel), expected, "{stack}");
            }
        }
    }

    #[test]
    fn who_could_run_waits_for_a_cpu() {
        let kernel = &["__schedule", "schedule", "futex_do_wait"];
        let preempted = Wait { is_preempted: true, ..waiting(1) };
        let woken = Wait { is_runqueue: true, ..waiting(1) };
        for wait in [preempted, woken, waiting(0)] {
            assert_eq!(classify(&wait, kernel), Reason::RunQueue);
        }
    }

    #[test]
    fn system_calls_tell_the_reason_where_the_kernel_hides_its_names() {
        use libc::*;
        for (number, state, expected) in [
            (SYS_futex, 1, Reason::Lock),
            (SYS_read, 2, Reason::Disk),
            (SYS_read, 1, Reason::Other),
            (SYS_fsync, 2, Reason::Disk),
            (SYS_munmap, 0x102, Reason::Lock),
            (SYS_openat, 2, Reason::FileSystem),
            (SYS_recvfrom, 1, Reason::Network),
            (SYS_epoll_pwait, 1, Reason::Network),
            (SYS_clock_nanosleep, 1, Reason::Sleep),
            (SYS_wait4, 1, Reason::Child),
            (SYS_getpid, 1, Reason::Other),
            #[cfg(target_arch = "x86_64")]
            (SYS_epoll_wait, 1, Reason::Network),
            #[cfg(target_arch = "x86_64")]
            (SYS_vfork, 2, Reason::Child),
        ] {
            let wait = in_call(number, state, [0; 6]);
            assert_eq!(classify(&wait, &[]), expected, "system call {number} in state {state}");
        }
    }

    #[test]
    fn outside_system_calls_only_memory_is_waited_for() {
        assert_eq!(classify(&waiting(2), &[]), Reason::PageFault);
        assert_eq!(classify(&waiting(1), &[]), Reason::Other);
        let kernel_thread = Wait { is_kernel_thread: true, ..waiting(2) };
        assert_eq!(classify(&kernel_thread, &[]), Reason::Other);
    }

    #[test]
    fn poll_without_files_is_a_sleep() {
        const TIMEOUT: u64 = 0x7fff_0000_1000;
        for kernel in [&["do_select", "core_sys_select"][..], &[]] {
            let select =
                |files, timeout| in_call(libc::SYS_pselect6, 1, [files, 0, 0, 0, timeout, 0]);
            assert_eq!(classify(&select(0, TIMEOUT), kernel), Reason::Sleep);
            assert_eq!(classify(&select(0, 0), kernel), Reason::Other);
            assert_eq!(classify(&select(4, TIMEOUT), kernel), Reason::Poll);
        }
        let ppoll = in_call(libc::SYS_ppoll, 1, [0xdead_0000_0000, 1, TIMEOUT, 0, 0, 0]);
        assert_eq!(classify(&ppoll, &["do_sys_poll"]), Reason::Poll);
    }

    #[test]
    fn a_stopped_thread_waits_for_nothing() {
        assert_eq!(classify(&waiting(4), &["do_signal_stop", "get_signal"]), Reason::Other);
        let traced = in_call(libc::SYS_futex, 8, [0; 6]);
        assert_eq!(classify(&traced, &[]), Reason::Other);
    }

    #[test]
    fn label_values_differ() {
        let names = Reason::ALL.map(Reason::name);
        let distinct = names.iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(distinct.len(), names.len());
    }
}
