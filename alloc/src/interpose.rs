//! The functions that programs call in place of their allocator's.
//!
//! What they do where nothing is sampled is a few instructions, so these are written for how they
//! compile: while nobody listens, the real function is jumped to and returns to the program itself.
//!
//! Unsafe for the same reason as C's: they are called with what C's contract allows, and pass it on.

use core::ffi::c_int;

use crate::live::LIVE;
use crate::real::{self, Object};
use crate::{arena, sample};

/// Defines functions that allocate: from their arguments, an expression for the size in bytes.
macro_rules! allocating {
    ($($name:ident($($argument:ident: $kind:ty),*), $size:expr;)*) => {
        mod sampling {
            //! The same while somebody listens.
            use super::{Object, real, sample};

            $(
                // Apart, so that the exported function keeps nothing on the stack.
                #[inline(never)]
                pub(super) unsafe extern "C" fn $name($($argument: $kind),*) -> Object {
                    // SAFETY: the caller keeps the contract of the function that it means to call.
                    let object = unsafe { real::$name()($($argument),*) };
                    sample::allocated(object, $size);
                    object
                }
            )*
        }

        $(
            #[doc = concat!("`", stringify!($name), "` of the C library.")]
            ///
            /// # Safety
            ///
            /// As in C.
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name($($argument: $kind),*) -> Object {
                if sample::on() {
                    // SAFETY: the caller keeps the contract of the function that it means to call.
                    return unsafe { sampling::$name($($argument),*) };
                }
                // SAFETY: likewise.
                unsafe { real::$name()($($argument),*) }
            }
        )*
    };
}

allocating! {
    malloc(size: usize), size;
    // If this overflows, the allocation has failed.
    calloc(count: usize, size: usize), count.wrapping_mul(size);
    memalign(alignment: usize, size: usize), size;
    aligned_alloc(alignment: usize, size: usize), size;
    valloc(size: usize), size;
    pvalloc(size: usize), size;
}

/// `posix_memalign` of the C library.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn posix_memalign(
    to: *mut Object,
    alignment: usize,
    size: usize,
) -> c_int {
    // SAFETY: the caller keeps the contract of the function that it means to call.
    let error = unsafe { real::posix_memalign()(to, alignment, size) };
    if error == 0 && sample::on() {
        // SAFETY: it has been written to just now.
        let object = unsafe { to.read() };
        sample::allocated(object, size);
    }
    error
}

/// `realloc` of the C library.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn realloc(object: Object, size: usize) -> Object {
    if LIVE.may_contain(object) {
        // SAFETY: the caller keeps the contract of the function that it means to call.
        return unsafe { realloc_watched(object, size) };
    }
    if sample::on() {
        // SAFETY: likewise.
        return unsafe { realloc_sampling(object, size) };
    }
    // SAFETY: likewise.
    unsafe { real::realloc()(object, size) }
}

/// The same while somebody listens.
#[inline(never)]
unsafe extern "C" fn realloc_sampling(object: Object, size: usize) -> Object {
    // SAFETY: the caller keeps the contract of the function that it means to call.
    let new = unsafe { real::realloc()(object, size) };
    sample::allocated(new, size);
    new
}

/// `reallocarray` of the C library.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn reallocarray(object: Object, count: usize, size: usize) -> Object {
    match count.checked_mul(size) {
        // SAFETY: the caller's object.
        Some(bytes) => unsafe { realloc(object, bytes) },
        // It fails, sets errno, and leaves the object alone.
        // SAFETY: likewise.
        None => unsafe { real::reallocarray()(object, count, size) },
    }
}

/// `realloc` of an object that may be one of those sampled, or of the arena.
#[cold]
#[inline(never)]
unsafe extern "C" fn realloc_watched(object: Object, size: usize) -> Object {
    if arena::contains(object) {
        // SAFETY: there is nothing that malloc requires.
        let new = unsafe { malloc(size) };
        if !new.is_null() {
            // SAFETY: `object` is of the arena, `new` has this size.
            unsafe { arena::copy(object, new, size) };
        }
        return new;
    }
    // Before the real realloc, which may give the address to another thread.
    let before = sample::released(object);
    // SAFETY: the caller keeps the contract of the function that it means to call.
    let new = unsafe { real::realloc()(object, size) };
    // With size 0, null means that the object has been freed.
    if let Some(before) = before.filter(|_| new.is_null() && size != 0) {
        sample::restored(object, before);
    } else if sample::on() {
        sample::allocated(new, size);
    }
    new
}

/// `free` of the C library.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn free(object: Object) {
    if LIVE.may_contain(object) {
        // SAFETY: the caller keeps the contract of the function that it means to call.
        return unsafe { free_watched(object) };
    }
    // SAFETY: likewise.
    unsafe { real::free()(object) }
}

/// `free_sized` of C23.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn free_sized(object: Object, _size: usize) {
    // SAFETY: C23 defines it as the same, 7.24.3.4.
    unsafe { free(object) }
}

/// `free_aligned_sized` of C23.
///
/// # Safety
///
/// As in C.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn free_aligned_sized(
    object: Object,
    _alignment: usize,
    _size: usize,
) {
    // SAFETY: C23 defines it as the same, 7.24.3.5.
    unsafe { free(object) }
}

/// `free` of an object that may be one of those sampled, or of the arena.
#[cold]
#[inline(never)]
unsafe extern "C" fn free_watched(object: Object) {
    sample::released(object);
    // What the arena gave, nobody else would know what to do with.
    if !arena::contains(object) {
        // SAFETY: the caller keeps the contract of the function that it means to call.
        unsafe { real::free()(object) };
    }
}
