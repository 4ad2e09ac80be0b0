//! rust_mutex HOLD SECONDS: slow_holder.c with a `std::sync::Mutex`.
//!
//! HOLD is `busy` or `sleep`. `THE_LOCK` is the lock; its address and size are those of the whole
//! `Mutex`, in which the word that threads wait on lies.
//!
//! rustc --edition 2024 -O -g rust_mutex.rs -o rust_mutex

mod contention;

use std::sync::Mutex;

use contention::Locker;

static THE_LOCK: Mutex<u64> = Mutex::new(0);

#[inline(never)]
fn slow_holder(locker: &mut Locker) {
    locker.asks();
    let mut guard = THE_LOCK.lock().expect("nobody panics");
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
    let mut guard = THE_LOCK.lock().expect("nobody panics");
    locker.keeps(false);
    *guard += 1;
    drop(guard);
    // Keeps the release from being the last call, which would become a jump.
    std::hint::black_box(locker);
}

fn main() {
    let place = (&raw const THE_LOCK as usize, size_of_val(&THE_LOCK));
    contention::run(
        "rust_mutex",
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
