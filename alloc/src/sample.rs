//! Which allocations are sampled, and what happens then.

use core::sync::atomic::Ordering::Relaxed;

use crate::abi::{
    RESTORED, WILL_BE_FREED, everflame_alloc_dropped, everflame_alloc_live, everflame_alloc_period,
    everflame_alloc_sampled, everflame_alloc_samples, everflame_alloc_semaphore,
    everflame_free_sampled,
};
use crate::distance::{distance, next_random, seed};
use crate::live::{Entered, LIVE};
use crate::thread_state::{self, ThreadState};

/// Whether anybody listens.
#[inline(always)]
pub(crate) fn on() -> bool {
    everflame_alloc_semaphore.0.load(Relaxed) != 0
}

/// To be called after each allocation of `size` bytes, if [`on`], also of those that failed.
#[inline(always)]
pub(crate) fn allocated(object: *mut u8, size: usize) {
    let state = thread_state::current();
    // SAFETY: the state is there as long as the thread is.
    let countdown = unsafe { &raw mut (*state).countdown };
    // SAFETY: likewise.
    let left = unsafe { countdown.read() }.wrapping_sub(size as i64);
    // SAFETY: likewise, and no other thread uses it.
    unsafe { countdown.write(left) };
    if left < 0 {
        countdown_is_over(object, size);
    }
}

/// Takes a sample, unless this was only the thread's first allocation.
#[cold]
#[inline(never)]
fn countdown_is_over(object: *mut u8, size: usize) {
    // SAFETY: the state is there as long as the thread is, and no other thread uses it. What this calls
    // does not use it either.
    let state = unsafe { &mut *thread_state::current() };
    if state.random == 0 {
        state.random = seed(state as *mut ThreadState as u64 ^ thread_state::ticks());
        draw(state);
        state.countdown = state.countdown.saturating_sub_unsigned(size as u64);
        if state.countdown >= 0 {
            return;
        }
    }
    let period = state.period;
    draw(state);
    // What failed would have been sampled; that is no reason to sample the next one instead.
    if !object.is_null() {
        take(object, size, period);
    }
}

/// Draws the distance to the next sample.
fn draw(state: &mut ThreadState) {
    // A child of fork has its parent's state. With the clock in it they go different ways.
    state.random = seed(state.random ^ thread_state::ticks());
    state.period = everflame_alloc_period.load(Relaxed).max(1);
    state.countdown = distance(next_random(&mut state.random), state.period);
}

fn take(object: *mut u8, size: usize, period: u64) {
    everflame_alloc_samples.0.fetch_add(1, Relaxed);
    let flags = enter(object, size);
    everflame_alloc_sampled(object, size, period, flags);
}

/// Enters an object in the table; returns the flags to report it with.
fn enter(object: *mut u8, size: usize) -> u64 {
    match LIVE.enter(object, size) {
        Entered::New => {
            everflame_alloc_live.fetch_add(1, Relaxed);
            WILL_BE_FREED
        }
        Entered::Again => {
            // It has been freed by a way that goes past us. The listener has to know, or it would have two
            // objects in one place.
            everflame_free_sampled(object);
            WILL_BE_FREED
        }
        Entered::NoRoom => {
            everflame_alloc_dropped.fetch_add(1, Relaxed);
            0
        }
    }
}

/// Forgets and reports an object that is about to be freed; returns its size if it had been sampled.
pub(crate) fn released(object: *mut u8) -> Option<usize> {
    let size = LIVE.remove(object)?;
    everflame_alloc_live.fetch_sub(1, Relaxed);
    everflame_free_sampled(object);
    Some(size)
}

/// Takes [`released`] back: the object has not been freed.
pub(crate) fn restored(object: *mut u8, size: usize) {
    let flags = RESTORED | enter(object, size);
    everflame_alloc_sampled(object, size, everflame_alloc_period.load(Relaxed), flags);
}
