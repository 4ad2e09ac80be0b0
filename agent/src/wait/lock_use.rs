//! Whether a wait on a futex is for a lock that somebody holds, or for something to happen.
//!
//! The kernel sees a word in memory that has not changed yet; only the program's functions tell
//! a mutex from a condition variable.

use std::sync::LazyLock;

use super::names::{self, Table};
use super::{Reason, Wait, syscalls};

/// What a wait with [`Reason::Lock`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockUse {
    /// A lock that another thread holds.
    Contention,
    /// A condition, semaphore, barrier or thread's end that another thread brings about.
    Condition,
    /// The functions do not tell. Counts as contention: better shown once too often.
    Unknown,
}

/// What a wait with [`Reason::Lock`] is for. `user` are the names of the program's functions,
/// leaf first, with as many of their callers as are known, demangled or as in the symbol table.
#[must_use]
pub fn lock_use(wait: &Wait, user: &[&str]) -> LockUse {
    const LOCK_PI2: i32 = 13;
    match syscalls::futex_operation(wait) {
        Some(libc::FUTEX_LOCK_PI | LOCK_PI2) => return LockUse::Contention,
        Some(libc::FUTEX_WAIT_REQUEUE_PI) => return LockUse::Condition,
        _ => {}
    }
    // The kernel's own locks, file locks and System V semaphores.
    if !syscalls::is_futex(wait) {
        return LockUse::Contention;
    }
    match user_use(user) {
        Some(Use::Contention) => LockUse::Contention,
        Some(Use::Work | Use::Result) => LockUse::Condition,
        None => LockUse::Unknown,
    }
}

/// Whether `wait` belongs into a profile of lock contention.
#[must_use]
pub fn is_lock_contention(wait: &Wait, reason: Reason, user: &[&str]) -> bool {
    reason == Reason::Lock && lock_use(wait, user) != LockUse::Condition
}

/// Whether a thread that wakes another one does not release a lock, but brings something about
/// that the other has waited for. `user` are its functions, leaf first.
#[must_use]
pub fn is_condition_release(user: &[&str]) -> bool {
    static TABLE: LazyLock<Table<()>> = LazyLock::new(|| Table::new(CONDITION_RELEASE_ROWS));
    user.iter().any(|name| TABLE.find(names::user_name(name)).is_some())
}

/// Functions that wake threads which wait for something other than a lock.
#[rustfmt::skip]
const CONDITION_RELEASE_ROWS: &[(&[&str], ())] = &[
    (&["pthread_cond_signal", "pthread_cond_broadcast", "cnd_signal", "cnd_broadcast",
       "std::*condition_variable*notify*", "sem_post", "new_sem_post", "pthread_barrier_wait",
       "*Condvar*::notify*", "*Parker*::unpark*", "std::thread::*unpark*", "runtime.notewakeup",
       "Unsafe_Unpark", "Parker::unpark*"], ()),
];

/// What a function waits for when it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A lock.
    Contention,
    /// Something to do: the thread is idle.
    Work,
    /// The outcome of what another thread does: not idle, but not a lock either.
    Result,
}

/// What the program's functions wait for. The innermost primitive decides, but for conditions:
/// runtimes build locks and futures from them, so the function that uses one knows better.
pub(super) fn user_use(user: &[&str]) -> Option<Use> {
    static PRIMITIVES: LazyLock<Table<Use>> = LazyLock::new(|| Table::new(PRIMITIVE_ROWS));
    static BUILT_UPON: LazyLock<Table<Use>> = LazyLock::new(|| Table::new(BUILT_UPON_ROWS));
    let find = |table: &Table<Use>| user.iter().find_map(|name| table.find(names::user_name(name)));
    match find(&PRIMITIVES) {
        Some(Use::Contention) => Some(Use::Contention),
        condition => find(&BUILT_UPON).or(condition),
    }
}

/// Functions that wait on a futex themselves.
#[rustfmt::skip]
const PRIMITIVE_ROWS: &[(&[&str], Use)] = &[
    // glibc and musl. lll_lock_wait is glibc's own lock as well, such as malloc's; lock is musl's.
    (&["pthread_mutex_lock", "pthread_mutex_lock_full", "pthread_mutex_timedlock",
       "pthread_mutex_clocklock", "pthread_mutex_clocklock_common", "pthread_mutex_cond_lock",
       "pthread_rwlock_rdlock*", "pthread_rwlock_wrlock*", "pthread_rwlock_timedrdlock*",
       "pthread_rwlock_timedwrlock*", "pthread_rwlock_clockrdlock*",
       "pthread_rwlock_clockwrlock*", "pthread_spin_lock", "lll_lock_wait",
       "lll_lock_wait_private", "lll_timedlock_wait", "lll_clocklock_wait", "lock",
       "pthread_once", "pthread_once_slow", "mtx_lock", "mtx_timedlock", "cxa_guard_acquire"],
     Use::Contention),
    (&["pthread_cond_wait", "pthread_cond_timedwait", "pthread_cond_clockwait",
       "pthread_cond_wait_common", "cnd_wait", "cnd_timedwait", "std::*condition_variable*",
       "Unsafe_Park", "Parker::park*"], Use::Work),
    (&["sem_wait", "sem_timedwait", "sem_clockwait", "new_sem_wait", "new_sem_wait_slow64",
       "new_sem_wait_slow", "pthread_join", "pthread_timedjoin_np", "pthread_clockjoin_ex",
       "pthread_clockjoin_np", "thrd_join", "pthread_barrier_wait", "std::__detail::__*wait*",
       "aio_suspend", "aio_suspend64", "gai_suspend"], Use::Result),
    // Rust: std's locks are futexes, parking_lot's park threads in a table of addresses.
    (&["*Mutex*::lock_contended", "*RwLock*::read_contended", "*RwLock*::write_contended",
       "*RawMutex*::lock_slow", "*RawRwLock*::lock_*_slow", "*RawFairMutex*::lock_slow",
       "*std::sys::*once*::call", "*Once*::call_once_slow"], Use::Contention),
    (&["*Condvar*::wait*", "*thread_parking*Parker*::park*", "std::thread::park*"], Use::Work),
    // Go: only its runtime's own locks block threads.
    (&["runtime.lock2", "runtime.lock", "runtime.lockWithRank"], Use::Contention),
    (&["runtime.mPark", "runtime.stopm", "runtime.findRunnable", "runtime.findrunnable",
       "runtime.sysmon", "runtime.templateThread", "runtime.notetsleepg", "runtime.notesleep",
       "runtime.notetsleep", "runtime.notetsleep_internal", "runtime.stoplockedm",
       "runtime.gcstopm"], Use::Work),
];

/// Functions that wait by means of a primitive. None of them runs code of the program's own, so
/// that being within one is waiting for it.
#[rustfmt::skip]
const BUILT_UPON_ROWS: &[(&[&str], Use)] = &[
    (&["*rayon_core::latch::LockLatch::wait*", "std::thread::scoped::scope"], Use::Result),
    // Java: HotSpot's monitors, and java.util.concurrent where its frames have names.
    (&["ObjectMonitor::enter*", "ObjectMonitor::EnterI*", "ObjectMonitor::reenter*",
       "ObjectMonitor::ReenterI*", "ObjectSynchronizer::enter*",
       "*AbstractQueuedSynchronizer*acquire*", "*AbstractQueuedLongSynchronizer*acquire*",
       "*StampedLock*acquire*"], Use::Contention),
    (&["*AbstractQueuedSynchronizer$ConditionObject*await*"], Use::Work),
    (&["*FutureTask*awaitDone", "*CompletableFuture*waitingGet", "*CompletableFuture*timedGet",
       "*CountDownLatch*await", "*CyclicBarrier*dowait"], Use::Result),
    // Python: the interpreter's lock, threading.Lock, queue.SimpleQueue.
    (&["take_gil", "PyEval_RestoreThread", "PyEval_AcquireThread", "lock_PyThread_acquire_lock",
       "PyMutex_Lock*"], Use::Contention),
    (&["queue_SimpleQueue_get*"], Use::Work),
    // Abseil, Folly, C++ futures, PostgreSQL, MySQL.
    (&["absl::*Mutex::LockSlow*", "folly::SharedMutex*::lock*", "folly::*MicroLock*::lockSlow*",
       "folly::*DistributedMutex*::lock*", "LWLockAcquire", "LWLockAcquireOrWait",
       "LWLockWaitForVar", "ProcSleep", "lock_wait_suspend_thread*", "sync_array_wait_event*"],
     Use::Contention),
    (&["std::__future_base::*wait*", "std::__basic_future*",
       "std::__1::__assoc_sub_state::*wait*", "std::thread::join*", "std::__1::thread::join*",
       "absl::*Notification::Wait*", "absl::*BlockingCounter::Wait*"], Use::Result),
    (&["absl::*CondVar::Wait*"], Use::Work),
];

#[cfg(test)]
mod tests {
    use super::*;

    const FUTEX: Wait = Wait {
        task_state: 1,
        is_preempted: false,
        is_runqueue: false,
        is_kernel_thread: false,
        syscall: Some(libc::SYS_futex as u32),
        args: [0; 6],
    };

    fn check(user: &[&str], expected: Option<Use>) {
        assert_eq!(user_use(user), expected, "{user:?}");
        let lock_use = match expected {
            Some(Use::Contention) => LockUse::Contention,
            Some(Use::Work | Use::Result) => LockUse::Condition,
            None => LockUse::Unknown,
        };
        assert_eq!(super::lock_use(&FUTEX, user), lock_use, "{user:?}");
        let is_contention = lock_use != LockUse::Condition;
        assert_eq!(is_lock_contention(&FUTEX, Reason::Lock, user), is_contention, "{user:?}");
    }

    #[test]
    fn locks_are_contention() {
        let contention = Some(Use::Contention);
        check(&["__lll_lock_wait", "pthread_mutex_lock@@GLIBC_2.2.5", "request_path"], contention);
        check(&["___pthread_rwlock_wrlock", "main"], contention);
        check(&["__lll_lock_wait_private", "_int_free", "free"], contention);
        check(&["syscall", "std::sys::sync::mutex::futex::Mutex::lock_contended"], contention);
        check(&["<std::sys::sync::rwlock::futex::RwLock>::write_contended"], contention);
        check(
            &[
                "<parking_lot_core::thread_parker::imp::ThreadParker>::park",
                "parking_lot_core::parking_lot::park::{{closure}}",
                "parking_lot::raw_mutex::RawMutex::lock_slow",
            ],
            contention,
        );
        check(
            &["runtime.futex", "runtime.futexsleep", "runtime.lock2", "runtime.mallocgc"],
            contention,
        );
    }

    #[test]
    fn a_condition_that_takes_its_mutex_again_is_contention() {
        check(
            &["__lll_lock_wait", "__pthread_mutex_cond_lock", "pthread_cond_wait@@GLIBC_2.3.2"],
            Some(Use::Contention),
        );
    }

    #[test]
    fn conditions_of_workers_are_work() {
        let work = Some(Use::Work);
        check(
            &[
                "__futex_abstimed_wait_common",
                "pthread_cond_wait@@GLIBC_2.3.2",
                "std::condition_variable::wait(std::unique_lock<std::mutex>&)",
                "worker",
            ],
            work,
        );
        check(&["futex_wait", "std::sys::sync::condvar::futex::Condvar::wait"], work);
        check(&["std::sys::sync::thread_parking::futex::Parker::park", "recv"], work);
        check(&["runtime.futex.abi0", "runtime.notesleep", "runtime.mPark", "runtime.stopm"], work);
        check(&["pthread_cond_wait", "Parker::park(bool, long)", "Unsafe_Park"], work);
        check(&["pthread_cond_wait", "ObjectMonitor::wait(long, bool, JavaThread*)"], work);
    }

    #[test]
    fn locks_and_futures_built_from_conditions_are_told_by_their_own_functions() {
        check(
            &["pthread_cond_timedwait", "take_gil", "PyEval_RestoreThread"],
            Some(Use::Contention),
        );
        check(
            &["pthread_cond_wait", "PlatformEvent::park()", "ObjectMonitor::EnterI(JavaThread*)"],
            Some(Use::Contention),
        );
        check(
            &[
                "pthread_cond_wait",
                "Unsafe_Park",
                "java.util.concurrent.locks.AbstractQueuedSynchronizer.acquire",
            ],
            Some(Use::Contention),
        );
        check(
            &[
                "pthread_cond_wait",
                "Unsafe_Park",
                "java.util.concurrent.CompletableFuture.waitingGet",
            ],
            Some(Use::Result),
        );
        check(&["__pthread_clockjoin_ex", "main"], Some(Use::Result));
        check(&["__new_sem_wait_slow64.constprop.0", "main"], Some(Use::Result));
    }

    #[test]
    fn what_a_callback_of_a_future_locks_is_contention() {
        check(&["pthread_mutex_lock", "task", "std::thread::scoped::scope"], Some(Use::Contention));
    }

    #[test]
    fn unknown_functions_count_as_contention() {
        check(&[], None);
        check(&["futex_wait", "my_lock"], None);
    }

    #[test]
    fn the_operation_tells_priority_inheritance() {
        let with = |operation: i32| Wait { args: [0, operation as u64, 0, 0, 0, 0], ..FUTEX };
        let lock_pi = with(libc::FUTEX_LOCK_PI | libc::FUTEX_PRIVATE_FLAG);
        assert_eq!(super::lock_use(&lock_pi, &["pthread_cond_wait"]), LockUse::Contention);
        let requeue = with(libc::FUTEX_WAIT_REQUEUE_PI | libc::FUTEX_PRIVATE_FLAG);
        assert_eq!(super::lock_use(&requeue, &[]), LockUse::Condition);
    }

    #[test]
    fn locks_of_the_kernel_are_contention_whatever_the_program_does() {
        let unlink = Wait { syscall: Some(libc::SYS_unlinkat as u32), ..FUTEX };
        assert_eq!(super::lock_use(&unlink, &["sem_wait"]), LockUse::Contention);
        assert!(!is_lock_contention(&unlink, Reason::FileSystem, &[]));
    }
}
