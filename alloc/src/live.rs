//! The sampled objects that are alive: what `free` has to look for.
//!
//! Nearly every call of `free` is for an object that was not sampled. So there is a filter before the
//! table: one byte for each KiB of addresses (folded), which counts the sampled objects there. Adjacent
//! addresses have adjacent bytes, so it is as warm in the cache as what the program is freeing.
//!
//! The table is divided into buckets of eight, a cache line each, and an address belongs in one of two.
//! It never has to be moved, and nothing is left behind where one has been removed, so that looking
//! one up always reads two lines, and 65536 objects fit but for a few.
//!
//! Both are static and zero: pages that are never touched cost nothing, and there is no system call that
//! could fail, or be forbidden, at the first sample. `fork` copies them as it does the objects.
//!
//! Of one address there is at most one call at a time, as the program owns the object; calls for
//! different addresses may meet in a bucket.

use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use core::sync::atomic::{Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// Slots in a bucket.
const BUCKET: usize = 8;

/// Buckets; a power of two.
const BUCKETS: usize = 8192;

/// How many objects the table can hold at most.
pub(crate) const SLOTS: usize = BUCKET * BUCKETS;

/// Counters of the filter; a power of two.
const FILTER: usize = 1 << 16;

/// Addresses that share a counter: a KiB.
const GRANULE_BITS: u32 = 10;

/// A bucket's keys: the addresses of objects, 0 where there is none.
#[repr(C, align(64))]
struct Bucket([AtomicU64; BUCKET]);

/// What became of an object that was to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// It is in the table.
    New,
    /// There was one of this address already, whose end nobody has told us of.
    Again,
    /// Both buckets are full.
    NoRoom,
}

/// The table and its filter.
pub(crate) struct Live {
    /// Entries of the table and addresses that are watched for good. While it is 0, nothing else is read.
    watched: AtomicUsize,
    filter: [AtomicU8; FILTER],
    keys: [Bucket; BUCKETS],
    /// Sizes of the objects, in bytes, each in its key's place.
    sizes: [AtomicU64; SLOTS],
}

/// The process's.
pub(crate) static LIVE: Live = Live::new();

impl Live {
    pub(crate) const fn new() -> Self {
        Self {
            watched: AtomicUsize::new(0),
            filter: [const { AtomicU8::new(0) }; FILTER],
            keys: [const { Bucket([const { AtomicU64::new(0) }; BUCKET]) }; BUCKETS],
            sizes: [const { AtomicU64::new(0) }; SLOTS],
        }
    }

    /// Whether an address could be one that was entered or is watched; never wrong if it says no.
    #[inline(always)]
    pub(crate) fn may_contain(&self, address: *mut u8) -> bool {
        self.watched.load(Relaxed) != 0 && self.counter(address as u64).load(Relaxed) != 0
    }

    /// Makes [`Live::may_contain`] true of an address for good.
    pub(crate) fn watch(&self, address: *mut u8) {
        self.count_up(address as u64);
    }

    /// Enters an object, or changes its size if it is there.
    pub(crate) fn enter(&self, address: *mut u8, size: usize) -> Entered {
        let key = address as u64;
        let buckets = buckets(key);
        if let Some(slot) = self.find(key) {
            self.size(slot).store(size as u64, Relaxed);
            return Entered::Again;
        }
        // The emptier one first: that is what lets the table become nearly full before there is no room.
        let [first, second] = buckets.map(|bucket| self.free_slots(bucket));
        let order = if second > first { [buckets[1], buckets[0]] } else { buckets };
        for bucket in order {
            for slot in slots(bucket) {
                // Acquire: whoever had this slot before has read its size.
                let taken = self.key(slot).compare_exchange(0, key, Acquire, Relaxed);
                if taken.is_ok() {
                    self.size(slot).store(size as u64, Relaxed);
                    self.count_up(key);
                    return Entered::New;
                }
            }
        }
        Entered::NoRoom
    }

    /// Removes an object and returns its size, if it is there.
    pub(crate) fn remove(&self, address: *mut u8) -> Option<usize> {
        let key = address as u64;
        if key == 0 {
            return None;
        }
        let slot = self.find(key)?;
        let size = self.size(slot).load(Relaxed);
        // Fails only if a program frees one object in two threads at once. Release: see `enter`.
        self.key(slot).compare_exchange(key, 0, Release, Relaxed).ok()?;
        self.count_down(key);
        Some(size as usize)
    }

    fn find(&self, key: u64) -> Option<usize> {
        buckets(key).into_iter().flat_map(slots).find(|&slot| self.key(slot).load(Relaxed) == key)
    }

    fn free_slots(&self, bucket: usize) -> usize {
        slots(bucket).filter(|&slot| self.key(slot).load(Relaxed) == 0).count()
    }

    fn key(&self, slot: usize) -> &AtomicU64 {
        &self.keys[slot / BUCKET % BUCKETS].0[slot % BUCKET]
    }

    fn size(&self, slot: usize) -> &AtomicU64 {
        &self.sizes[slot % SLOTS]
    }

    #[inline(always)]
    fn counter(&self, key: u64) -> &AtomicU8 {
        let granule = key >> GRANULE_BITS;
        // Heaps of threads begin at multiples of 64 MiB, which is what the counters span: what is above that
        // moves them apart.
        let folded = granule.wrapping_add((granule >> 16).wrapping_mul(0x9e37_79b1));
        &self.filter[folded as usize % FILTER]
    }

    fn count_up(&self, key: u64) {
        self.watched.fetch_add(1, Relaxed);
        // Stays at its highest when it gets there: then it says yes for good, which is never wrong.
        self.change(key, |count| count.checked_add(1));
    }

    fn count_down(&self, key: u64) {
        self.change(key, |count| (count != u8::MAX).then(|| count.saturating_sub(1)));
        self.watched.fetch_sub(1, Relaxed);
    }

    fn change(&self, key: u64, to: impl Fn(u8) -> Option<u8>) {
        const ORDER: Ordering = Relaxed;
        let counter = self.counter(key);
        let mut count = counter.load(ORDER);
        while let Some(next) = to(count) {
            match counter.compare_exchange_weak(count, next, ORDER, ORDER) {
                Ok(_) => return,
                Err(now) => count = now,
            }
        }
    }
}

/// The two buckets that an address may be in; never the same one twice.
fn buckets(key: u64) -> [usize; 2] {
    // The lowest four bits of an address are zero; the highest of a product depend on all others.
    let hash = (key >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let first = (hash >> 51) as usize;
    let second = (hash >> 38) as usize % BUCKETS;
    [first, if second == first { first ^ 1 } else { second }]
}

fn slots(bucket: usize) -> core::ops::Range<usize> {
    bucket * BUCKET..(bucket + 1) * BUCKET
}
