//! Whether a thread that waits has nothing to do.
//!
//! A rule hides a wait from the default view, so each one names a place where programs wait for
//! work and for little else. In doubt a wait is shown: a receive on a connected socket, a poll,
//! a sleep, a child, a pipe or a semaphore are idle only where the program's functions say so.

use std::sync::LazyLock;

use super::lock_use::{self, LockUse, Use};
use super::names::{self, Table};
use super::{Reason, Wait, syscalls, task_state};

/// Whether the thread waits for work rather than for something that holds it up: the `idle`
/// label. `reason` is what [`super::classify`] said of `wait`; `kernel` and `user` are names of
/// functions, leaf first.
///
/// | what waits | idle because |
/// | --- | --- |
/// | a kernel thread in its own main loop, or in `TASK_IDLE` | nobody gave it work |
/// | epoll, accept | an event loop or a listener between events |
/// | a condition variable, a parked thread | a pool's worker without a job; not if a caller waits for one result (future, join, barrier) or for a lock built upon it |
/// | sigwait, pause, inotify, a terminal, a FUSE daemon's queue, a virtual CPU that halted | it waits for the outside world |
/// | poll, select, sleep and the rest within a known event loop | as epoll |
#[must_use]
pub fn is_idle(wait: &Wait, reason: Reason, kernel: &[&str], user: &[&str]) -> bool {
    match reason {
        Reason::RunQueue => false,
        Reason::Disk | Reason::FileSystem | Reason::PageFault | Reason::Child => {
            is_kernel_main_loop(wait, kernel)
        }
        Reason::Lock => {
            lock_use::lock_use(wait, user) == LockUse::Condition
                && lock_use::user_use(user) == Some(Use::Work)
        }
        // A database's backend may wait for a lock in epoll.
        _ if lock_use::user_use(user) == Some(Use::Contention) => false,
        Reason::Network | Reason::Poll | Reason::Sleep | Reason::Other => {
            is_kernel_main_loop(wait, kernel)
                || has_kernel_row(kernel)
                || syscalls::waits_for_work(wait)
                || is_event_loop(user)
        }
    }
}

/// Whether a thread of the kernel sleeps in the function that it consists of, or one below.
/// State D is a wait for something, unless it does not count as load.
fn is_kernel_main_loop(wait: &Wait, kernel: &[&str]) -> bool {
    let mut frames = kernel.iter().rev().map(|symbol| names::kernel_name(symbol)).peekable();
    let mut is_thread = wait.is_kernel_thread;
    while frames.next_if(|name| THREAD_START.contains(name)).is_some() {
        is_thread = true;
    }
    if !is_thread || wait.is_uninterruptible() {
        return false;
    }
    if wait.task_state & task_state::NOLOAD != 0 {
        return true;
    }
    let own = frames.filter(|name| !SCHEDULER.contains(name)).collect::<Vec<_>>();
    own.len() == 1 || own.last().is_some_and(|innermost| MAIN_LOOPS.contains(innermost))
}

fn has_kernel_row(kernel: &[&str]) -> bool {
    kernel.iter().any(|symbol| KERNEL_ROWS.contains(&names::kernel_name(symbol)))
}

/// Whether an event loop waits itself. A handler that it calls is not idle, so nothing but
/// wrappers of system calls may lie further in.
fn is_event_loop(user: &[&str]) -> bool {
    static LOOPS: LazyLock<Table<()>> = LazyLock::new(|| Table::new(EVENT_LOOPS));
    let mut names = user.iter().map(|symbol| names::user_name(symbol));
    let caller = names.find(|name| !WRAPPERS.contains(name));
    caller.is_some_and(|name| LOOPS.find(name).is_some())
}

/// The outermost functions of a thread that the kernel started.
const THREAD_START: &[&str] = &["ret_from_fork_asm", "ret_from_fork", "kthread"];

/// Functions that wait for anything.
const SCHEDULER: &[&str] = &[
    "__schedule",
    "schedule",
    "schedule_timeout",
    "schedule_timeout_idle",
    "schedule_timeout_interruptible",
    "schedule_hrtimeout",
    "schedule_hrtimeout_range",
    "schedule_hrtimeout_range_clock",
    "schedule_preempt_disabled",
    "wait_woken",
    "kthread_parkme",
    "__kthread_parkme",
];

/// Parts of main loops that compilers do not inline.
const MAIN_LOOPS: &[&str] = &[
    "devtmpfs_work_loop",
    "io_wq_worker",
    "kcompactd",
    "khugepaged_wait_work",
    "kswapd_try_to_sleep",
    "nocb_gp_wait",
    "rcu_gp_fqs_loop",
    "rcu_tasks_one_gp",
    "svc_recv",
    "vhost_worker",
    "worker_thread",
];

/// Functions of the kernel that wait for work, wherever in the stack.
const KERNEL_ROWS: &[&str] = &[
    // Event loops.
    "ep_poll",
    "do_epoll_wait",
    "do_epoll_pwait",
    // Listeners. inet_csk_wait_for_connect is the wait within inet_csk_accept.
    "inet_csk_accept",
    "inet_csk_wait_for_connect",
    "inet_accept",
    "unix_accept",
    "vsock_accept",
    "sctp_accept",
    "do_accept",
    "__sys_accept4",
    // The outside world.
    "do_sigtimedwait",
    "sigsuspend",
    "signalfd_read",
    "signalfd_read_iter",
    "inotify_read",
    "fanotify_read",
    "n_tty_read",
    "do_syslog",
    "devkmsg_read",
    "fuse_dev_do_read",
    "userfaultfd_read_iter",
    "kvm_vcpu_block",
    "kvm_vcpu_halt",
    "do_msgrcv",
    "do_mq_timedreceive",
    // An io_uring's kernel threads, which have the program's memory.
    "io_sq_thread",
];

/// Functions of libraries that do nothing but call the kernel.
#[rustfmt::skip]
const WRAPPERS: &[&str] = &[
    "poll", "ppoll", "ppoll64", "poll_chk", "select", "pselect", "pselect64", "libc_select",
    "nanosleep", "clock_nanosleep", "clock_nanosleep_time64", "usleep", "syscall",
    "syscall_cancel", "internal_syscall_cancel", "syscall_cancel_arch", "io_uring_enter",
    "io_uring_enter2", "runtime.usleep", "runtime.usleep.abi0",
];

/// Functions of programs that wait for any of their events, by whatever system call.
#[rustfmt::skip]
const EVENT_LOOPS: &[(&[&str], ())] = &[
    // GLib, libuv, libevent, libev, Redis, PostgreSQL, Apache, Qt, Tk.
    (&["g_main_context_poll*", "g_main_context_iterate*", "uv_io_poll", "poll_dispatch",
       "select_dispatch", "poll_poll", "select_poll", "aeApiPoll", "ServerLoop",
       "apr_pollset_poll", "impl_pollset_poll", "QEventDispatcher*::processEvents*",
       "Tcl_WaitForEvent"], ()),
    // Go's monitor thread; Rust; liburing.
    (&["runtime.sysmon", "*mio::*::Poll::poll*", "io_uring_wait_cqe*",
       "io_uring_submit_and_wait*"], ()),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::classify;

    fn check(wait: Wait, kernel: &[&str], user: &[&str], expected: bool) {
        let reason = classify(&wait, kernel);
        assert_eq!(
            is_idle(&wait, reason, kernel, user),
            expected,
            "{reason:?} {kernel:?} {user:?}"
        );
    }

    fn in_call(number: libc::c_long) -> Wait {
        Wait { task_state: 1, syscall: Some(number as u32), ..Wait::default() }
    }

    fn kernel_thread(task_state: u32) -> Wait {
        Wait { task_state, is_kernel_thread: true, ..Wait::default() }
    }

    #[test]
    fn event_loops_and_listeners_are_idle_with_and_without_kernel_names() {
        let epoll = in_call(libc::SYS_epoll_pwait);
        check(epoll, &["schedule", "do_epoll_wait", "do_epoll_pwait.part.0"], &[], true);
        check(epoll, &[], &[], true);
        check(in_call(libc::SYS_accept4), &["schedule", "inet_csk_accept"], &[], true);
        check(in_call(libc::SYS_accept4), &[], &[], true);
    }

    #[test]
    fn a_receive_a_sleep_a_pipe_and_a_child_are_not_idle() {
        check(in_call(libc::SYS_recvfrom), &["sk_wait_data", "tcp_recvmsg"], &["recv"], false);
        check(in_call(libc::SYS_clock_nanosleep), &["do_nanosleep"], &["nanosleep", "main"], false);
        check(in_call(libc::SYS_read), &["anon_pipe_read", "vfs_read"], &["read"], false);
        check(in_call(libc::SYS_wait4), &["do_wait", "kernel_wait4"], &["wait4"], false);
        check(in_call(libc::SYS_ppoll), &["do_sys_poll"], &["poll", "main"], false);
    }

    #[test]
    fn a_poll_of_an_event_loop_is_idle_but_not_that_of_its_handlers() {
        let poll = in_call(libc::SYS_ppoll);
        let kernel = &["poll_schedule_timeout.constprop.0", "do_sys_poll"];
        let event_loop = &["__poll", "g_main_context_iterate.isra.0", "g_main_loop_run"];
        check(poll, kernel, event_loop, true);
        let handler = &["__poll", "wait_for_server", "handler", "g_main_context_iterate.isra.0"];
        check(poll, kernel, handler, false);
    }

    #[test]
    fn conditions_of_pools_are_idle_but_locks_joins_and_the_unknown_are_not() {
        let futex = in_call(libc::SYS_futex);
        let kernel = &["schedule", "futex_do_wait", "__futex_wait"];
        check(futex, kernel, &["pthread_cond_wait@@GLIBC_2.3.2", "worker"], true);
        check(futex, kernel, &["pthread_mutex_lock@@GLIBC_2.2.5", "worker"], false);
        check(futex, kernel, &["__pthread_clockjoin_ex", "main"], false);
        check(futex, kernel, &["pthread_cond_wait", "std::__basic_future<int>::wait()"], false);
        check(futex, kernel, &[], false);
    }

    #[test]
    fn a_backend_that_waits_for_a_lock_in_epoll_is_not_idle() {
        let user = &["epoll_wait", "WaitEventSetWait", "WaitLatch", "ProcSleep", "LockAcquire"];
        check(in_call(libc::SYS_epoll_pwait), &["do_epoll_wait"], user, false);
    }

    #[test]
    fn kernel_threads_are_idle_in_their_main_loop_only() {
        const IDLE: u32 = task_state::UNINTERRUPTIBLE | task_state::NOLOAD;
        let base = ["kthread", "ret_from_fork", "ret_from_fork_asm"];
        let stack = |own: &[&'static str]| [own, &base].concat();
        let worker = &["__schedule", "schedule", "worker_thread"];
        check(kernel_thread(IDLE), &stack(worker), &[], true);
        check(kernel_thread(1), &stack(&["schedule", "smpboot_thread_fn"]), &[], true);
        check(kernel_thread(1), &stack(&["devtmpfs_work_loop", "devtmpfsd"]), &[], true);
        let rcu = &["schedule_timeout", "rcu_gp_fqs_loop", "rcu_gp_kthread"];
        check(kernel_thread(IDLE), &stack(rcu), &[], true);
        let flush = &[
            "schedule",
            "io_schedule",
            "folio_wait_bit",
            "ext4_writepages",
            "wb_writeback",
            "process_one_work",
            "worker_thread",
        ];
        check(kernel_thread(2), &stack(flush), &[], false);
        let item = &["schedule", "some_wait", "some_work", "process_one_work", "worker_thread"];
        check(kernel_thread(1), &stack(item), &[], false);
        check(kernel_thread(0), &stack(worker), &[], false);
    }

    #[test]
    fn signals_and_terminals_are_the_outside_world() {
        check(in_call(libc::SYS_rt_sigtimedwait), &["do_sigtimedwait.isra.0"], &[], true);
        check(in_call(libc::SYS_rt_sigsuspend), &[], &[], true);
        check(in_call(libc::SYS_read), &["wait_woken", "n_tty_read", "tty_read"], &["read"], true);
        check(in_call(libc::SYS_read), &["fuse_dev_do_read", "fuse_dev_read"], &["read"], true);
    }
}
