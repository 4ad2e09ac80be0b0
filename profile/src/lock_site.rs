//! Which function of a program wants a lock, told by the names on a stack that waits for one.

/// Whether it is a lock of the kind whose waiters sleep on words of their own.
pub(crate) fn parks(stack: &[String]) -> bool {
    stack.iter().any(|name| starts_with(name, PARKING))
}

/// The function that wants the lock, of a stack with the leaf first.
pub(crate) fn wanting(stack: &[String]) -> &str {
    let is_own = |name: &&String| !starts_with(name, PARKING) && !starts_with(name, WAYS_TO_A_LOCK);
    stack.iter().find(is_own).or(stack.first()).map_or("", String::as_str)
}

/// Functions of locks whose waiters sleep on words of their own.
const PARKING: &[&str] = &[
    "parking_lot::",
    "parking_lot_core::",
    "<parking_lot::",
    "<parking_lot_core::",
    "ObjectMonitor::",
    "ObjectSynchronizer::",
    "Parker::park",
    "Unsafe_Park",
    "PlatformEvent::park",
    "os::PlatformEvent::park",
    "java.util.concurrent.locks.",
    "jdk.internal.misc.Unsafe.park",
];

/// Functions between those and the program's own: of the kernel, of libc and of runtimes.
const WAYS_TO_A_LOCK: &[&str] = &[
    "_",
    "core::",
    "do_futex",
    "do_syscall_64",
    "down_",
    "entry_SYSCALL",
    "futex",
    "InterpreterRuntime::",
    "lll_",
    "lock_api::",
    "<lock_api",
    "mutex_lock",
    "new_sem",
    "osq_",
    "pthread_",
    "rt_mutex",
    "Runtime1::",
    "rwsem_",
    "schedule",
    "SharedRuntime::",
    "std::",
    "syscall",
    "x64_sys_call",
    "[",
];

fn starts_with(name: &str, beginnings: &[&str]) -> bool {
    beginnings.iter().any(|beginning| name.starts_with(beginning))
}
