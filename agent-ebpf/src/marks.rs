//! What is looked for in a map is mostly not there. To see that in an array costs a tenth of asking the map: for
//! each of its entries a number is raised that the object of the kernel's which it is about leads to. A few share one,
//! which costs a look into the map.

use core::ffi::c_void;

use aya_ebpf::maps::Array;
use everflame_agent_common::limits::MARK_BITS;

use crate::stats;

/// How many entries of a map are for objects that lead here.
pub type Marks = Array<u64>;

/// Where an object of the kernel's leads to. The verifier takes its address for a pointer, and lets nothing be
/// computed of one but its distance from another: that is the same each time, from what stays where it is.
#[inline(always)]
fn at(marks: &Marks, object: *const c_void) -> Option<u32> {
    let base = marks.get_ptr(0)?;
    let mut distance = object as u64;
    // Written down, as the compiler would find another way to the same number.
    // SAFETY: it has no effect but on the register.
    unsafe { core::arch::asm!("{0} -= {1}", inout(reg) distance, in(reg) base) };
    Some(stats::scrambled(distance) >> (32 - MARK_BITS))
}

/// Whether the map may have an entry for this object.
#[inline(always)]
pub fn is_marked(marks: &Marks, object: *const c_void) -> bool {
    let mark = at(marks, object).and_then(|at| marks.get_ptr(at));
    // SAFETY: a map value.
    mark.is_none_or(|mark| unsafe { *mark } != 0)
}

/// There is an entry for this object now.
#[inline(always)]
pub fn mark(marks: &Marks, object: *const c_void) {
    if let Some(mark) = at(marks, object).and_then(|at| marks.get_ptr_mut(at)) {
        // SAFETY: a map value.
        unsafe { stats::add_shared(mark, 1) };
    }
}

/// It is gone.
#[inline(always)]
pub fn unmark(marks: &Marks, object: *const c_void) {
    if let Some(mark) = at(marks, object).and_then(|at| marks.get_ptr_mut(at)) {
        // SAFETY: a map value. It does not go below zero, whoever else removes the same entry.
        unsafe {
            if *mark != 0 {
                stats::add_shared(mark, u64::MAX);
            }
        }
    }
}
