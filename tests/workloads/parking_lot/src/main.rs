//! parking_lot_mutex HOLD SECONDS: slow_holder.c with a `parking_lot::Mutex`.
//!
//! HOLD is `busy` or `sleep`. `THE_LOCK` is the lock; its address and size are those of the whole
//! `Mutex`, which no thread ever waits on: each waits on a word of its own.
//!
//! cargo build --release

#[path = "../../contention.rs"]
mod contention;

use parking_lot::Mutex;

use contention::Locker;

static THE_LOCK: Mutex<u64> = parking_lot::const_mutex(0);

#[inline(never)]
fn slow_holder(locker: &mut Locker) {
    locker.asks();
    let mut guard = THE_LOCK.lock();
    locker.keeps(true);
    *guard += 1;
    drop(guard);
    // Keeps the release from being the last call, which would become a jump.
    std::hint::black_box(locker);
}

#[inline(never)]
fn holder_outer(locker: &mut Locker) {
    slow_holder(locker);
    // As above.
    std::hint::black_box(locker);
}

#[inline(never)]
fn request_path(locker: &mut Locker) {
    locker.asks();
    let mut guard = THE_LOCK.lock();
    locker.keeps(false);
    *guard += 1;
    drop(guard);
    // Keeps the release from being the last call, which would become a jump.
    std::hint::black_box(locker);
}

fn main() {
    let place = (&raw const THE_LOCK as usize, size_of_val(&THE_LOCK));
    contention::run(
        "parking_lot",
        place,
        |mut locker| {
            holder_outer(&mut locker);
            while locker.pauses() {
                holder_outer(&mut locker);
            }
            locker
        },
        |mut locker| {
            request_path(&mut locker);
            while locker.pauses() {
                request_path(&mut locker);
            }
            locker
        },
    );
}
