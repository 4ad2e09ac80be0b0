//! Which function of the kernel waits for what.
//!
//! The table is asked from the leaf outwards, so a row says what the wait is for if nothing
//! further in says more: `io_schedule` below `ext4_find_entry` is the disk, `schedule` below it
//! the file system. Functions that wait for anything (`schedule_timeout`,
//! `wait_for_completion`) have no row. Rows name functions of Linux 5.4 to 6.18; where a
//! compiler inlines one of them, its callers decide, which is why callers are listed as well.

use std::sync::LazyLock;

use super::Reason;
use super::names::Table;

/// What a function says of a wait further in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The reason, if nothing further in had one.
    Reason(Reason),
    /// The wait happens in a page fault, whatever it is for.
    Fault,
    /// A file system whose files are elsewhere: block I/O here does not serve them.
    RemoteFile,
}

pub(super) fn decision(name: &str) -> Option<Decision> {
    static TABLE: LazyLock<Table<Decision>> = LazyLock::new(|| Table::new(ROWS));
    TABLE.find(name)
}

/// Whether the function, as the leaf of a stack without the scheduler's functions, can only be
/// waiting for a lock: the lock's own functions belong to the scheduler and are left out.
pub(super) fn sleeps_in_locks_only(leaf: &str) -> bool {
    LOCK_CALLERS.contains(&leaf)
}

const LOCK: Decision = Decision::Reason(Reason::Lock);
const DISK: Decision = Decision::Reason(Reason::Disk);
const FILE_SYSTEM: Decision = Decision::Reason(Reason::FileSystem);
const NETWORK: Decision = Decision::Reason(Reason::Network);
const POLL: Decision = Decision::Reason(Reason::Poll);
const SLEEP: Decision = Decision::Reason(Reason::Sleep);
const CHILD: Decision = Decision::Reason(Reason::Child);
const OTHER: Decision = Decision::Reason(Reason::Other);

#[rustfmt::skip]
const ROWS: &[(&[&str], Decision)] = &[
    // Futexes: futex_wait_queue_me until 5.15, futex_wait_queue until 6.15, then futex_do_wait.
    (&["futex_wait_queue_me", "futex_wait_queue", "futex_do_wait", "futex_wait", "__futex_wait",
       "futex_wait_multiple", "futex_wait_requeue_pi", "futex_lock_pi", "do_futex",
       "rt_mutex_wait_proxy_lock", "do_sys_futex_waitv", "__do_sys_futex_waitv"], LOCK),
    // Locks within the kernel, the slow paths and what calls them.
    (&["__mutex_lock*", "mutex_lock*", "__ww_mutex_lock*", "ww_mutex_lock*", "rwsem_down_*",
       "__rwsem_down_*", "down_read*", "down_write*", "__down", "__down_common", "__down_*",
       "down", "down_interruptible", "down_killable", "down_timeout", "percpu_rwsem_wait",
       "__percpu_down_read", "percpu_down_write", "rt_mutex_slowlock*", "__rt_mutex_slowlock*",
       "rt_mutex_lock*", "rwbase_*", "rt_write_lock", "rt_read_lock", "rt_spin_lock*",
       "ldsem_down_*", "__lock_sock", "__down_read_common", "__down_write_common"], LOCK),
    // File locks, System V semaphores.
    (&["locks_lock_inode_wait", "flock_lock_inode_wait", "posix_lock_inode_wait",
       "posix_lock_file_wait", "fcntl_setlk", "do_lock_file_wait", "nlmclnt_block",
       "nlmclnt_wait", "__break_lease", "do_semtimedop", "__do_semtimedop", "ksys_semtimedop",
       "__do_sys_semtimedop"], LOCK),
    // Page faults; the last row is arm64's.
    (&["exc_page_fault", "asm_exc_page_fault", "do_page_fault", "async_page_fault",
       "do_user_addr_fault", "handle_mm_fault", "__handle_mm_fault", "do_fault",
       "faultin_page", "handle_userfault", "do_swap_page",
       "do_translation_fault", "do_mem_abort", "el0_da", "el0_ia", "el1_abort"], Decision::Fault),
    // Block I/O. Pages are waited for by wait_on_page_bit_common until 5.15.
    (&["io_schedule", "io_schedule_timeout", "blk_io_schedule", "folio_wait_*",
       "wait_on_page_*", "__lock_page*", "__folio_lock*", "bit_wait_io*", "out_of_line_wait_on_bit*",
       "__wait_on_buffer", "__sync_dirty_buffer", "filemap_update_page", "filemap_read_folio",
       "filemap_get_pages", "__filemap_fdatawait_range", "wait_for_completion_io*",
       "submit_bio_wait", "bio_await_chain", "blk_execute_rq*", "blk_mq_get_tag",
       "blk_queue_enter", "__bio_queue_enter", "rq_qos_wait", "__rq_qos_throttle", "wbt_wait",
       "blkdev_*", "__blkdev_*", "__iomap_dio_rw", "iomap_dio_*", "dio_await_completion",
       "do_blockdev_direct_IO", "__blockdev_direct_IO", "balance_dirty_pages*",
       "xfs_buf_iowait", "_xfs_buf_read", "read_events", "do_io_getevents", "raid5_*", "raid1_*",
       "raid10_*", "md_*", "dm_*", "nvme_*", "scsi_*", "sd_*", "ata_*"], DISK),
    // A FUSE daemon that waits for requests, rather than a thread that waits for the daemon.
    (&["fuse_dev_*"], OTHER),
    // Files that live elsewhere.
    (&["nfs_*", "nfs3_*", "nfs4_*", "rpc_*", "__rpc_*", "xprt_*", "fuse_*", "__fuse_*",
       "request_wait_answer", "cifs_*", "smb2_*", "SMB2_*", "compound_send_recv",
       "wait_for_response", "ceph_*", "v9fs_*", "p9_*", "netfs_*", "afs_*", "gfs2_*", "ocfs2_*",
       "autofs_wait"], Decision::RemoteFile),
    // Local file systems, apart from block I/O.
    (&["jbd2_*", "__jbd2_*", "wait_transaction_locked", "add_transaction_credits",
       "start_this_handle", "do_get_write_access", "ext4_*", "__ext4_*", "xfs_*", "xlog_*", "btrfs_*",
       "__btrfs_*", "wait_current_trans", "wait_for_commit", "flush_space", "f2fs_*", "__f2fs_*",
       "bch2_*", "bcachefs_*", "ovl_*", "erofs_*", "cv_wait_common", "__cv_wait*", "txg_*", "zil_*",
       "zfs_*", "dmu_*", "d_alloc_parallel", "d_wait_lookup", "wait_on_inode",
       "wait_on_new_inode", "__wait_on_freeing_inode", "iget_locked", "iget5_locked",
       "inode_dio_wait*", "__inode_dio_wait", "inode_sleep_on_writeback",
       "__inode_wait_for_writeback", "wb_wait_for_completion", "writeback_inodes_sb*",
       "__writeback_inodes_sb_nr", "sync_inodes_sb", "fanotify_handle_event",
       "fanotify_get_response", "dquot_*"], FILE_SYSTEM),
    // Sockets. ep_poll is often inlined into its callers.
    (&["sk_wait_data", "sk_stream_*", "__skb_wait_for_more_packets", "__skb_recv_datagram",
       "skb_recv_datagram", "__skb_recv_udp", "inet_*", "__inet_*", "inet6_*", "tcp_*", "__tcp_*",
       "mptcp_*", "udp_*", "udpv6_*", "raw_recvmsg", "raw_sendmsg", "unix_*", "vsock_*", "netlink_*", "packet_*",
       "tls_*", "sctp_*", "smc_*", "kcm_*", "tipc_*", "af_alg_*", "bt_sock_*",
       "sock_*", "__sock_*", "____sys_recvmsg", "____sys_sendmsg", "___sys_recvmsg",
       "___sys_sendmsg", "do_recvmmsg", "__sys_recvfrom", "__sys_sendto", "__sys_accept4",
       "__sys_connect", "do_accept", "tun_do_read", "tun_chr_read_iter", "tap_do_read",
       "ep_poll", "do_epoll_wait", "do_epoll_pwait"], NETWORK),
    (&["poll_schedule_timeout", "do_poll", "do_sys_poll", "do_select", "core_sys_select",
       "do_pselect", "kern_select", "io_cqring_wait", "__do_sys_io_uring_enter"], POLL),
    (&["do_nanosleep", "hrtimer_nanosleep", "common_nsleep", "common_nsleep_timens",
       "alarm_timer_nsleep", "alarmtimer_do_nsleep", "timerfd_read", "timerfd_read_iter", "msleep",
       "msleep_interruptible", "usleep_range", "usleep_range_state", "fsleep"], SLEEP),
    // vfork waits in the parent's own system call.
    (&["do_wait", "__do_wait", "kernel_wait4", "kernel_waitid", "wait_for_vfork_done", "_do_fork",
       "kernel_clone"], CHILD),
    // Waits that a caller's row would explain wrongly.
    (&["io_wq_worker", "io_sq_thread", "do_signal_stop", "ptrace_stop",
       "do_freezer_trap", "__refrigerator", "seccomp_do_user_notification", "pipe_read",
       "pipe_write", "anon_pipe_read", "anon_pipe_write", "fifo_pipe_read", "fifo_pipe_write",
       "pipe_wait_readable", "pipe_wait_writable", "wait_on_pipe", "wait_for_partner", "fifo_open",
       "eventfd_read", "eventfd_ctx_read", "signalfd_read_iter", "signalfd_read", "inotify_read",
       "fanotify_read", "n_tty_read", "n_tty_write", "tty_read", "do_syslog", "devkmsg_read",
       "do_sigtimedwait", "sigsuspend", "do_msgrcv", "do_msgsnd", "do_mq_timedreceive",
       "do_mq_timedsend", "wq_sleep", "userfaultfd_read_iter", "kvm_vcpu_block", "kvm_vcpu_halt",
       "perf_read", "do_task_dead"], OTHER),
];

/// See [`sleeps_in_locks_only`]. Locks of directories and files, and of the address space.
#[rustfmt::skip]
const LOCK_CALLERS: &[&str] = &[
    "path_openat", "open_last_lookups", "lookup_slow", "__lookup_slow", "walk_component",
    "filename_create", "do_unlinkat", "do_rmdir", "do_renameat2", "lock_rename",
    "lock_two_directories", "iterate_dir", "chown_common", "chmod_common", "do_truncate",
    "generic_file_write_iter", "ext4_buffered_write_iter", "ext4_file_write_iter",
    "xfs_ilock", "__fdget_pos", "fdget_pos", "lock_mm_and_find_vma",
    "do_user_addr_fault", "vm_mmap_pgoff", "__vm_munmap", "do_mprotect_pkey",
    "madvise_do_behavior", "do_madvise", "madvise_lock", "__do_sys_brk", "__x64_sys_brk",
    "__arm64_sys_brk", "__access_remote_vm", "exit_mmap", "dup_mmap",
    "pipe_lock", "pipe_double_lock",
];
