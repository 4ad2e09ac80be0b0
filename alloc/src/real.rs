//! The functions that this library stands before: those of the C library, or of an allocator that the
//! program is linked with or that is preloaded after us.
//!
//! Each is a pointer that first leads to a function of our own, which looks all of them up; so a call
//! needs no test whether that has been done.
//!
//! A library that names `libc.so.6` symbols by the versions of the machine it was built on would keep
//! programs from starting where the C library is older, or another one. So `dlsym` is asked for in its
//! oldest version, and may be absent: before glibc 2.34 it is in `libdl`, which not every program
//! loads. Then glibc's own names for its functions do. With musl there is nothing to find; names
//! have no versions there.

use core::arch::naked_asm;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::transmute;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use crate::{arena, thread_state};

/// An object that is being allocated, or was.
pub(crate) type Object = *mut u8;

/// `RTLD_NEXT` of glibc and musl: in the libraries after the one that asks.
const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;

/// For `valloc` of C libraries that have none: a multiple of all page sizes there are.
const LARGEST_PAGE: usize = 64 << 10;

/// A function that returns the address of a symbol which may be absent, in which case it is null.
macro_rules! weak {
    ($function:ident, $symbol:literal $(, $directive:literal)*) => {
        #[unsafe(naked)]
        extern "C" fn $function() -> *mut () {
            #[cfg(target_arch = "x86_64")]
            naked_asm!(
                $($directive,)*
                concat!(".weak ", $symbol),
                ".cfi_startproc",
                concat!("mov rax, qword ptr [rip + ", $symbol, "@GOTPCREL]"),
                "ret",
                ".cfi_endproc",
            );
            #[cfg(target_arch = "aarch64")]
            naked_asm!(
                $($directive,)*
                concat!(".weak ", $symbol),
                ".cfi_startproc",
                concat!("adrp x0, :got:", $symbol),
                concat!("ldr x0, [x0, :got_lo12:", $symbol, "]"),
                "ret",
                ".cfi_endproc",
            );
        }
    };
}

#[cfg(all(target_env = "gnu", target_arch = "x86_64"))]
weak!(dlsym, "everflame_dlsym", ".symver everflame_dlsym, dlsym@GLIBC_2.2.5");
#[cfg(all(target_env = "gnu", target_arch = "aarch64"))]
weak!(dlsym, "everflame_dlsym", ".symver everflame_dlsym, dlsym@GLIBC_2.17");
#[cfg(not(target_env = "gnu"))]
weak!(dlsym, "dlsym");
weak!(libc_malloc, "__libc_malloc");
weak!(libc_calloc, "__libc_calloc");
weak!(libc_realloc, "__libc_realloc");
weak!(libc_memalign, "__libc_memalign");
weak!(libc_free, "__libc_free");

extern "C" fn none() -> *mut () {
    ptr::null_mut()
}

/// For each function: the pointer, a getter for it, what it is at first, and how it is found.
macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty, $libc:ident, $symbol:literal;)*) => {
        mod first {
            //! What the pointers are before anything is known.
            use super::*;

            $(pub(super) unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
                if resolving() {
                    // SAFETY: the caller keeps the contract of the function that it means to call.
                    unsafe { fallback::$name($($argument),*) }
                } else {
                    resolve();
                    // SAFETY: likewise.
                    unsafe { super::$name()($($argument),*) }
                }
            })*
        }

        mod pointer {
            //! The pointers themselves.
            use super::*;

            $(
                #[expect(non_upper_case_globals, reason = "made from the function's name")]
                pub(super) static $name: AtomicPtr<()> = AtomicPtr::new(first::$name as *mut ());
            )*
        }

        $(
            #[doc = concat!("The real `", stringify!($name), "`.")]
            #[inline(always)]
            pub(crate) fn $name() -> unsafe extern "C" fn($($kind),*) -> $result {
                let function = pointer::$name.load(Relaxed);
                // SAFETY: it is `first::` or `fallback::` of this name, or the symbol that C gives this type.
                unsafe { transmute::<*mut (), unsafe extern "C" fn($($kind),*) -> $result>(function) }
            }
        )*

        /// Looks all functions up. Any number of threads may do so at once; they find the same.
        pub(crate) fn resolve() {
            set_resolving(1);
            $(
                let found = next($symbol);
                let found = if found.is_null() { $libc() } else { found };
                let found = if found.is_null() { fallback::$name as *mut () } else { found };
                pointer::$name.store(found, Relaxed);
            )*
            set_resolving(0);
        }
    };
}

functions! {
    malloc(size: usize) -> Object, libc_malloc, c"malloc";
    calloc(count: usize, size: usize) -> Object, libc_calloc, c"calloc";
    realloc(object: Object, size: usize) -> Object, libc_realloc, c"realloc";
    free(object: Object) -> (), libc_free, c"free";
    memalign(alignment: usize, size: usize) -> Object, libc_memalign, c"memalign";
    aligned_alloc(alignment: usize, size: usize) -> Object, libc_memalign, c"aligned_alloc";
    posix_memalign(to: *mut Object, alignment: usize, size: usize) -> c_int, none, c"posix_memalign";
    reallocarray(object: Object, count: usize, size: usize) -> Object, none, c"reallocarray";
    valloc(size: usize) -> Object, none, c"valloc";
    pvalloc(size: usize) -> Object, none, c"pvalloc";
}

fn next(symbol: &CStr) -> *mut () {
    let dlsym = dlsym();
    if dlsym.is_null() {
        return ptr::null_mut();
    }
    type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut ();
    // SAFETY: this is the type that POSIX gives it.
    let dlsym = unsafe { transmute::<*mut (), Dlsym>(dlsym) };
    // SAFETY: the handle is one it knows, and the name ends with a zero.
    unsafe { dlsym(RTLD_NEXT, symbol.as_ptr()) }
}

fn resolving() -> bool {
    let state = thread_state::current();
    // SAFETY: the state is there as long as the thread is.
    unsafe { (*state).resolving != 0 }
}

fn set_resolving(value: u64) {
    let state = thread_state::current();
    // SAFETY: as above, and no other thread uses it.
    unsafe { (*state).resolving = value };
}

/// What a real function is replaced by while they are being looked up, or where there is none.
mod fallback {
    use super::{LARGEST_PAGE, Object, arena, c_int, ptr};

    /// `ENOMEM`, the same on all of Linux's machines.
    const OUT_OF_MEMORY: c_int = 12;

    pub(super) unsafe extern "C" fn malloc(size: usize) -> Object {
        arena::allocate(size, 1)
    }

    pub(super) unsafe extern "C" fn calloc(count: usize, size: usize) -> Object {
        count.checked_mul(size).map_or(ptr::null_mut(), |bytes| arena::allocate(bytes, 1))
    }

    pub(super) unsafe extern "C" fn realloc(object: Object, size: usize) -> Object {
        let new = arena::allocate(size, 1);
        if !new.is_null() && arena::contains(object) {
            // SAFETY: both are objects of the arena, and `new` has this size.
            unsafe { arena::copy(object, new, size) };
        }
        new
    }

    pub(super) unsafe extern "C" fn free(_object: Object) {}

    pub(super) unsafe extern "C" fn memalign(alignment: usize, size: usize) -> Object {
        if alignment.is_power_of_two() { arena::allocate(size, alignment) } else { ptr::null_mut() }
    }

    pub(super) unsafe extern "C" fn aligned_alloc(alignment: usize, size: usize) -> Object {
        // SAFETY: the caller's arguments, which mean the same to both.
        unsafe { super::memalign()(alignment, size) }
    }

    pub(super) unsafe extern "C" fn posix_memalign(
        to: *mut Object,
        alignment: usize,
        size: usize,
    ) -> c_int {
        // SAFETY: as for `aligned_alloc`.
        let object = unsafe { super::memalign()(alignment, size) };
        if object.is_null() {
            return OUT_OF_MEMORY;
        }
        // SAFETY: the caller has promised that a pointer can be written there.
        unsafe { to.write(object) };
        0
    }

    pub(super) unsafe extern "C" fn reallocarray(
        object: Object,
        count: usize,
        size: usize,
    ) -> Object {
        // So large that it fails, and sets errno.
        let bytes = count.saturating_mul(size);
        // SAFETY: the caller's object.
        unsafe { super::realloc()(object, bytes) }
    }

    pub(super) unsafe extern "C" fn valloc(size: usize) -> Object {
        // SAFETY: a power of two.
        unsafe { super::memalign()(LARGEST_PAGE, size) }
    }

    pub(super) unsafe extern "C" fn pvalloc(size: usize) -> Object {
        let bytes = size.checked_next_multiple_of(LARGEST_PAGE).unwrap_or(usize::MAX);
        // SAFETY: a power of two.
        unsafe { super::memalign()(LARGEST_PAGE, bytes) }
    }
}
