//! What is done when the library is loaded: before the program's `main`, while there is one thread.

use core::ffi::{CStr, c_char};

use core::sync::atomic::Ordering::Relaxed;

use crate::abi::everflame_alloc_period;
use crate::real;

/// With the sign that separates it from its value.
const PERIOD: &[u8] = b"EVERFLAME_ALLOC_PERIOD=";

// Named, as Rust's own libraries would otherwise be what brings it in. It has to be, so that the loader
// initialises the C library, and with it the environment, before us.
#[link(name = "c")]
unsafe extern "C" {
    /// The environment, as pointers to `NAME=value`, the last one null. Read here rather than by `getenv`,
    /// which some programs replace.
    static environ: *const *const c_char;
}

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    real::resolve();
    if let Some(period) = period() {
        everflame_alloc_period.store(period, Relaxed);
    }
}

/// The period that the environment asks for, if it is a number of bytes and not 0.
fn period() -> Option<u64> {
    // SAFETY: a variable of the C library, that nobody writes to before `main`.
    let mut entry = unsafe { environ };
    while !entry.is_null() {
        // SAFETY: up to and with the null, which is where we stop.
        let text = unsafe { entry.read() };
        if text.is_null() {
            break;
        }
        // SAFETY: the C library and the kernel end each of these with a zero.
        let text = unsafe { CStr::from_ptr(text) };
        if let Some(value) = text.to_bytes().strip_prefix(PERIOD) {
            return number(value).filter(|&period| period != 0);
        }
        entry = entry.wrapping_add(1);
    }
    None
}

fn number(digits: &[u8]) -> Option<u64> {
    let first = digits.first()?;
    first.is_ascii_digit().then_some(())?;
    digits.iter().try_fold(0u64, |number, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}
