//! Memory for those who allocate while the real allocator is being looked for.
//!
//! `dlsym` may itself allocate (glibc before 2.34 does so for its error messages), and ends up here. What it
//! gets is never given back; it is a few hundred bytes in a process's life.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::{cell::UnsafeCell, ptr};

use crate::live::LIVE;

const SIZE: usize = 16 << 10;

/// What every allocator aligns to on the supported machines, and room for an object's size before it.
const ALIGNMENT: usize = 16;

#[repr(C, align(16))]
struct Arena(UnsafeCell<[u8; SIZE]>);

// SAFETY: parts of it are handed out, each only once; `USED` sees to that.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([0; SIZE]));

static USED: AtomicUsize = AtomicUsize::new(0);

fn start() -> usize {
    ARENA.0.get() as usize
}

/// Whether [`allocate`] has returned this address.
pub(crate) fn contains(address: *mut u8) -> bool {
    (address as usize).wrapping_sub(start()) < SIZE
}

/// Zeroed memory, or null when the arena is used up. `alignment` is a power of two.
pub(crate) fn allocate(size: usize, alignment: usize) -> *mut u8 {
    let alignment = alignment.max(ALIGNMENT);
    // Room to align, and for the size in the 16 bytes before.
    let Some(taken) = size
        .checked_add(alignment + ALIGNMENT)
        .filter(|&taken| taken <= SIZE)
        .map(|taken| (taken + ALIGNMENT - 1) & !(ALIGNMENT - 1))
    else {
        return ptr::null_mut();
    };
    let offset = USED.fetch_add(taken, Relaxed);
    if offset > SIZE || taken > SIZE - offset {
        // Not given back: another thread may have taken from it since.
        USED.store(SIZE, Relaxed);
        return ptr::null_mut();
    }
    let address = (start() + offset + ALIGNMENT + alignment - 1) & !(alignment - 1);
    let object = address as *mut u8;
    let header = (address - ALIGNMENT) as *mut usize;
    // SAFETY: within the part taken above, which is ours alone, and aligned to 16.
    unsafe { header.write(size) };
    // So that free and realloc look twice.
    LIVE.watch(object);
    object
}

/// Copies an object of the arena to where there is room for `size` bytes: as much of it as fits.
///
/// # Safety
///
/// [`allocate`] must have returned `object`, and `size` bytes at `to` must be writable.
pub(crate) unsafe fn copy(object: *mut u8, to: *mut u8, size: usize) {
    let header = (object as usize - ALIGNMENT) as *const usize;
    // SAFETY: `allocate` has written the object's size there.
    let length = unsafe { header.read() };
    // SAFETY: neither object is shorter than that; they are two different ones.
    unsafe { ptr::copy_nonoverlapping(object, to, length.min(size)) };
}
