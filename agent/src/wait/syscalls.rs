//! Which system call waits for what, where no function of the kernel says more.
//!
//! Numbers are those of the architecture that the agent runs on (x86_64 or aarch64), which is
//! the one that it profiles.

use libc::c_long;

use super::{Reason, Wait};

/// The reason for a wait in `wait.syscall`; [`Reason::Other`] for a call that has no row.
pub(super) fn reason(wait: &Wait) -> Reason {
    let by_state = if wait.is_uninterruptible() { UNINTERRUPTIBLE } else { &[] };
    number(wait)
        .and_then(|number| find(by_state, number).or_else(|| find(CALLS, number)))
        .or_else(|| number(wait).and_then(|number| find(LEGACY_CALLS, number)))
        .unwrap_or(Reason::Other)
}

/// What poll or select wait for when they are given no file: the time, the usual way to sleep
/// for less than a second in old programs, or without a time a signal. None: they have files.
pub(super) fn without_files(wait: &Wait) -> Option<Reason> {
    let number = number(wait)?;
    let row = POLLS.iter().find(|row| row.number == number)?;
    // Both counts are 32 bits wide; the rest of the register is not defined.
    let files = wait.args[row.files] as u32;
    let has_timeout = match row.timeout {
        Timeout::Milliseconds(argument) => (wait.args[argument] as i32) >= 0,
        Timeout::Pointer(argument) => wait.args[argument] != 0,
    };
    (files == 0).then_some(if has_timeout { Reason::Sleep } else { Reason::Other })
}

/// Whether the call, by its number, is one of servers that wait for clients.
pub(super) fn waits_for_work(wait: &Wait) -> bool {
    number(wait).is_some_and(|number| WAITS_FOR_WORK.contains(&number))
}

/// The operation of a `futex` call without its flags; None in another call.
pub(super) fn futex_operation(wait: &Wait) -> Option<i32> {
    const FLAGS: i32 = libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME;
    (number(wait)? == libc::SYS_futex).then_some(wait.args[1] as i32 & !FLAGS)
}

/// Whether the call waits for a word in user memory.
pub(super) fn is_futex(wait: &Wait) -> bool {
    const FUTEX: &[c_long] = &[libc::SYS_futex, libc::SYS_futex_waitv, FUTEX_WAIT];
    number(wait).is_some_and(|number| FUTEX.contains(&number))
}

fn number(wait: &Wait) -> Option<c_long> {
    wait.syscall.map(c_long::from)
}

fn find(rows: &[(&[c_long], Reason)], number: c_long) -> Option<Reason> {
    rows.iter().find(|(numbers, _)| numbers.contains(&number)).map(|&(_, reason)| reason)
}

/// `futex_wait` (Linux 6.7); not in libc yet, and the same number everywhere.
pub(crate) const FUTEX_WAIT: c_long = 455;

/// Calls on a file of any kind that wait in state D: for what the file lies on. In another
/// state it may as well be a socket or a pipe.
const UNINTERRUPTIBLE: &[(&[c_long], Reason)] = &[
    (
        &[
            libc::SYS_read,
            libc::SYS_pread64,
            libc::SYS_readv,
            libc::SYS_preadv,
            libc::SYS_preadv2,
            libc::SYS_write,
            libc::SYS_pwrite64,
            libc::SYS_writev,
            libc::SYS_pwritev,
            libc::SYS_pwritev2,
            libc::SYS_sendfile,
            libc::SYS_splice,
            libc::SYS_copy_file_range,
            libc::SYS_readahead,
            libc::SYS_fadvise64,
            libc::SYS_io_submit,
            libc::SYS_io_uring_enter,
        ],
        Reason::Disk,
    ),
    // The lock of the address space.
    (
        &[
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mremap,
            libc::SYS_mprotect,
            libc::SYS_madvise,
            libc::SYS_brk,
        ],
        Reason::Lock,
    ),
];

/// Calls that both architectures have.
const CALLS: &[(&[c_long], Reason)] = &[
    (
        &[
            libc::SYS_futex,
            libc::SYS_futex_waitv,
            FUTEX_WAIT,
            libc::SYS_flock,
            libc::SYS_fcntl,
            libc::SYS_semop,
            libc::SYS_semtimedop,
        ],
        Reason::Lock,
    ),
    (
        &[
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_sync,
            libc::SYS_syncfs,
            libc::SYS_msync,
            libc::SYS_io_getevents,
        ],
        Reason::Disk,
    ),
    (
        &[
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_newfstatat,
            libc::SYS_statx,
            libc::SYS_fstat,
            libc::SYS_statfs,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_readlinkat,
            libc::SYS_getdents64,
            libc::SYS_mkdirat,
            libc::SYS_mknodat,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_ftruncate,
            libc::SYS_truncate,
            libc::SYS_fallocate,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_utimensat,
        ],
        Reason::FileSystem,
    ),
    (
        &[
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_recvmmsg,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
            libc::SYS_accept,
            libc::SYS_accept4,
            libc::SYS_connect,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
        ],
        Reason::Network,
    ),
    (&[libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_io_uring_enter], Reason::Poll),
    (&[libc::SYS_nanosleep, libc::SYS_clock_nanosleep], Reason::Sleep),
    // A clone that waits is a vfork.
    (&[libc::SYS_wait4, libc::SYS_waitid, libc::SYS_clone, libc::SYS_clone3], Reason::Child),
];

/// Calls that only x86_64 has.
#[cfg(target_arch = "x86_64")]
const LEGACY_CALLS: &[(&[c_long], Reason)] = &[
    (
        &[
            libc::SYS_open,
            libc::SYS_creat,
            libc::SYS_stat,
            libc::SYS_lstat,
            libc::SYS_access,
            libc::SYS_readlink,
            libc::SYS_getdents,
            libc::SYS_mkdir,
            libc::SYS_rmdir,
            libc::SYS_unlink,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_link,
            libc::SYS_symlink,
            libc::SYS_chmod,
            libc::SYS_chown,
        ],
        Reason::FileSystem,
    ),
    (&[libc::SYS_sync_file_range], Reason::Disk),
    (&[libc::SYS_epoll_wait], Reason::Network),
    (&[libc::SYS_poll, libc::SYS_select], Reason::Poll),
    (&[libc::SYS_vfork], Reason::Child),
];

/// Calls that only x86_64 has.
#[cfg(not(target_arch = "x86_64"))]
const LEGACY_CALLS: &[(&[c_long], Reason)] = &[];

/// Where a call of the poll family has its count of files and its timeout.
struct Poll {
    number: c_long,
    files: usize,
    timeout: Timeout,
}

enum Timeout {
    /// Argument by value; negative: none.
    Milliseconds(usize),
    /// Argument by address; null: none.
    Pointer(usize),
}

const POLLS: &[Poll] = &[
    Poll { number: libc::SYS_ppoll, files: 1, timeout: Timeout::Pointer(2) },
    Poll { number: libc::SYS_pselect6, files: 0, timeout: Timeout::Pointer(4) },
    #[cfg(target_arch = "x86_64")]
    Poll { number: libc::SYS_poll, files: 1, timeout: Timeout::Milliseconds(2) },
    #[cfg(target_arch = "x86_64")]
    Poll { number: libc::SYS_select, files: 0, timeout: Timeout::Pointer(4) },
];

const WAITS_FOR_WORK: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
];
