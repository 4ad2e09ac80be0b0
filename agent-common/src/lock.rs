//! Locks that threads wait for: what is kept of each while anybody does, and what a release says.
//!
//! A lock is known by the futex, the word in memory that its waiters sleep on; those of the kernel
//! by where they lie there. Whoever wakes one of the waiters has released it. The time that
//! threads wait for a lock is charged to the release that ends it, or ends a part of it: between
//! two releases all that wait do so because of the thread that makes the second one.
//!
//! ```text
//! waiter A   |--------------------|
//! waiter B        |-----------------------|
//! releases                        1       2
//! charges     A up to 1, B up to 1; B from 1 to 2
//! ```

use crate::event::DETAIL_WORDS;
use crate::wait::{Weight, count_down};

/// Which lock; the key of a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockKey {
    /// The futex, in the memory of its process; or the kernel's lock.
    pub address: u64,
    /// The process; 0 for the kernel's locks.
    pub pid: u32,
    /// Must be zero.
    pub unused: u32,
}

impl LockKey {
    /// The lock at an address that a thread of this process waits for.
    #[inline(always)]
    pub const fn new(address: u64, pid: u32) -> Self {
        Self { address, pid: if is_of_kernel(address) { 0 } else { pid }, unused: 0 }
    }
}

/// Whether a lock is one of the kernel's, by its address.
#[inline(always)]
pub const fn is_of_kernel(address: u64) -> bool {
    address >> 63 != 0
}

/// `LCB_F_*` of include/trace/events/lock.h: what the tracepoints say of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockFlags(pub u32);

impl LockFlags {
    const SPIN: u32 = 1 << 0;
    const READ: u32 = 1 << 1;
    const WRITE: u32 = 1 << 2;
    const RT: u32 = 1 << 3;
    const PERCPU: u32 = 1 << 4;
    const MUTEX: u32 = 1 << 5;

    /// Whether the CPU waits actively.
    #[inline(always)]
    pub const fn is_spinning(self) -> bool {
        self.0 & Self::SPIN != 0
    }

    /// Whether a task that spins for it may also go to sleep for it.
    #[inline(always)]
    pub const fn may_sleep(self) -> bool {
        !self.is_spinning() || self.has(Self::MUTEX)
    }

    const fn has(self, flags: u32) -> bool {
        self.0 & flags != 0
    }

    /// The kernel's name for such locks.
    pub const fn kind(self) -> &'static str {
        if self.has(Self::MUTEX) {
            "mutex"
        } else if self.has(Self::PERCPU) {
            "percpu_rwsem"
        } else if self.has(Self::READ | Self::WRITE) {
            if self.is_spinning() { "rwlock" } else { "rwsem" }
        } else if self.has(Self::RT) {
            "rt_mutex"
        } else if self.is_spinning() {
            "spinlock"
        } else {
            "semaphore"
        }
    }
}

/// What is kept of a lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// Threads that wait for it.
    pub waiters: u64,
    /// When it was last released, or else when the first of them came, on CLOCK_MONOTONIC.
    pub released_ns: u64,
    /// How much later than that the others came, in nanoseconds, all together.
    pub late_ns: u64,
    /// Time with waiters until the next sample, in nanoseconds.
    pub left: u64,
}

impl Lock {
    /// What a release now is to blame for, in nanoseconds of waiting.
    #[inline(always)]
    pub fn charge(&self, now_ns: u64) -> u64 {
        // Bounds that keep the product below 2^63: 65 536 threads and a day.
        let waiters = bounded(self.waiters, 1 << 16);
        let waited_ns = bounded(now_ns.saturating_sub(self.released_ns), 1 << 46);
        (waiters * waited_ns).saturating_sub(self.late_ns)
    }
}

/// Decides whether a release becomes a sample, and what that stands for.
///
/// The time since the last release is counted down like a wait, so that there is one sample in
/// each period of a lock's time with waiters, however many they are; it stands for the charges
/// of all releases in that period.
#[inline(always)]
pub fn blame(lock: &mut Lock, now_ns: u64, period: u64, random: u32) -> Option<Weight> {
    /// So many bits behind the point.
    const FRACTION: u32 = 12;
    let charge = lock.charge(now_ns);
    let interval = now_ns.saturating_sub(lock.released_ns);
    lock.released_ns = now_ns;
    lock.late_ns = 0;
    let Weight { value, count } = count_down(&mut lock.left, interval, period, random)?;
    if value == interval {
        return Some(Weight { value: charge, count });
    }
    // Less than 2^16 * period * 2^12, as so many threads at most wait for the interval.
    let scale = (value << FRACTION).checked_div(interval).unwrap_or(0);
    Some(Weight { value: (charge * scale) >> FRACTION, count })
}

#[inline(always)]
const fn bounded(value: u64, most: u64) -> u64 {
    if value < most { value } else { most }
}

/// What a sample of kind `Release` says beside the common parts, which are about the thread that
/// released the lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Release {
    /// The lock.
    pub address: u64,
    /// The process of the thread that was woken; 0 for the kernel's locks.
    pub pid: u32,
    /// That thread.
    pub tid: u32,
    /// When, on CLOCK_MONOTONIC: the end of that thread's wait.
    pub time_ns: u64,
    /// Of a lock of the kernel: see [`LockFlags`].
    pub kernel_lock_flags: u32,
}

impl Release {
    /// As words for a record's header.
    #[inline(always)]
    pub fn to_detail(self) -> [u64; DETAIL_WORDS] {
        let mut detail = [0; DETAIL_WORDS];
        detail[0] = self.address;
        detail[1] = self.pid as u64 | (self.tid as u64) << 32;
        detail[2] = self.time_ns;
        detail[3] = self.kernel_lock_flags as u64;
        detail
    }

    /// From words of a record's header.
    pub fn from_detail(detail: &[u64; DETAIL_WORDS]) -> Self {
        Self {
            address: detail[0],
            pid: detail[1] as u32,
            tid: (detail[1] >> 32) as u32,
            time_ns: detail[2],
            kernel_lock_flags: detail[3] as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_wait_are_charged_from_when_they_came() {
        // Since 100; a second one came at 130.
        let lock = Lock { waiters: 2, released_ns: 100, late_ns: 30, left: 0 };
        assert_eq!(lock.charge(150), 50 + 20);
        assert_eq!(Lock::default().charge(150), 0);
        // Counts that another CPU is changing.
        assert_eq!(Lock { late_ns: 1000, ..lock }.charge(150), 0);
        assert_eq!(lock.charge(90), 0);
        assert!(Lock { waiters: u64::MAX, ..lock }.charge(u64::MAX) < 1 << 63);
    }

    #[test]
    fn sum_of_samples_is_what_all_releases_are_charged_with() {
        const PERIOD: u64 = 10_000_000;
        let mut random = 1u32;
        for waiters in [1, 7, 500] {
            let mut lock = Lock { waiters, released_ns: 1000, late_ns: 0, left: PERIOD / 3 };
            let (mut now_ns, mut total, mut value, mut samples) = (1000, 0, 0, 0);
            for i in 0..200_000u64 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // 5 to 300 us, and now and then more than a period.
                now_ns += if i % 1000 == 0 { 3 * PERIOD } else { 5_000 + i * 7919 % 295_000 };
                total += lock.charge(now_ns);
                if let Some(weight) = blame(&mut lock, now_ns, PERIOD, random) {
                    value += weight.value;
                    samples += 1;
                }
            }
            let error = value.abs_diff(total) as f64 / total as f64;
            assert!(error < 0.001, "{waiters} waiters: {value} of {total}");
            assert!(samples <= (now_ns - 1000) / PERIOD + 1, "{samples}");
        }
    }

    #[test]
    fn locks_of_the_kernel_are_of_no_process() {
        assert_eq!(LockKey::new(0x7f00_0000_1000, 7).pid, 7);
        assert_eq!(LockKey::new(0xffff_8880_0000_1000, 7).pid, 0);
    }

    #[test]
    fn kinds_are_told_by_what_the_tracepoints_say() {
        let kinds = [0, 1, 2, 4, 5, 3, 8, 0x12, 0x20, 0x21].map(|flags| LockFlags(flags).kind());
        let expected = [
            "semaphore",
            "spinlock",
            "rwsem",
            "rwsem",
            "rwlock",
            "rwlock",
            "rt_mutex",
            "percpu_rwsem",
            "mutex",
            "mutex",
        ];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn detail_reads_back() {
        let release = Release { address: 1, pid: 2, tid: 3, time_ns: 4, kernel_lock_flags: 5 };
        assert_eq!(Release::from_detail(&release.to_detail()), release);
    }
}
