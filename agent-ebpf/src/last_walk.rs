//! The walk before this one, to be followed instead of looked up.
//!
//! Deep stacks change at their leaf side; what lies above is mostly the same from one sample to the
//! next. Each walk notes of each frame where the two words lie that led to its caller: the return
//! address and the saved frame pointer. When the next one comes to a frame with the same address and
//! stack pointer, the same rule reads the same two words; if the return address is still the same,
//! so is the caller. Nothing is taken on trust but the rules, as from the cache of rules. And it is
//! known beforehand where these words lie, while in an ordinary step that depends on the step
//! before, so that each load has to wait for several others.

use everflame_agent_common::{
    limits::{FRAME_SLOTS, MAX_USER_FRAMES},
    unwind::{Architecture as _, Registers, Sign as _},
};

use crate::unwind::{Native, OpaqueSign, Window, is_above};

const MASK: u64 = MAX_USER_FRAMES as u64 - 1;

const _: () = assert!(MAX_USER_FRAMES.is_power_of_two());

/// Frames that are gone over at once, at most.
pub const RUN: u64 = 8;

/// Entries of the walk before that are passed over in a step, at most.
const MAX_PASSED: usize = 3;

/// A walk, as it notes its frames, and the one before; a part of a map value.
#[repr(C)]
pub struct LastWalk {
    /// Which of `frames` is of the present walk: 0 or 1.
    present: u64,
    /// Frames of the present walk of which it is known how they led to their callers.
    present_len: u64,
    /// Under what stamp it finds its rules.
    stamp: u64,
    /// Frames of the walk before; 0 if it is of no use.
    before_len: u64,
    /// The next of them.
    at: u64,
    /// 0 if the frame that the present walk has got to is that one.
    differs: u64,
    frames: [[Noted; MAX_USER_FRAMES]; 2],
}

/// A frame, and what led from it to its caller.
#[repr(C)]
#[derive(Clone, Copy)]
struct Noted {
    ip: u64,
    sp: u64,
    fp: u64,
    /// Bytes from `sp` to the return address; in the upper half to where the frame pointer was
    /// saved, or to the return address once more. 0 if the caller depends on anything else.
    offsets: u64,
}

/// In [`Noted::offsets`]: the frame pointer has to be the same, too.
const BY_FRAME_POINTER: u64 = 1 << 31;

/// What an ordinary step depended on, beside the rule of the address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The stack pointer.
    StackPointer,
    /// The frame pointer, and perhaps the stack pointer.
    FramePointer,
    /// Other registers or other memory than the two words.
    Other,
}

impl LastWalk {
    /// Begins a walk, with rules under this stamp.
    #[inline(always)]
    pub fn begin(&mut self, stamp: u64) {
        self.present ^= 1;
        self.before_len = if self.stamp == stamp { self.present_len } else { 0 };
        self.stamp = stamp;
        self.present_len = 0;
        self.at = 0;
        self.differs = 1;
    }

    /// Goes from a frame, the one at `index` of this walk, to its caller, if the walk before did so
    /// and the words that led there are the same.
    #[inline(always)]
    pub fn follow(&mut self, index: u64, registers: &mut Registers, window: &mut Window) -> bool {
        let next = self.at + 1;
        if self.differs != 0 || next >= self.before_len {
            return false;
        }
        let present = (self.present & 1) as usize;
        let noted = &self.frames[present ^ 1][(self.at & MASK) as usize];
        if noted.offsets == 0 {
            return false;
        }
        let saved_at = noted.sp.wrapping_add(noted.offsets >> 32);
        let return_address_at = noted.sp.wrapping_add(noted.offsets & (BY_FRAME_POINTER - 1));
        if noted.offsets & BY_FRAME_POINTER != 0 && noted.fp != registers.fp {
            return false;
        }
        let Some((saved, stored)) = window.words(saved_at, return_address_at) else {
            return false;
        };
        let caller = &self.frames[present ^ 1][(next & MASK) as usize];
        if Native::code_address(stored) != caller.ip {
            return false;
        }
        let Noted { ip, sp, offsets, .. } = *noted;
        let fp = registers.fp;
        registers.ip = caller.ip;
        registers.sp = caller.sp;
        if saved_at != return_address_at {
            registers.fp = saved;
        }
        self.frames[present][(index & MASK) as usize] = Noted { ip, sp, fp, offsets };
        self.present_len = index + 1;
        self.at = next;
        true
    }

    /// Goes over frames of this walk as [`Self::follow`] does, from the one at `index` on, and writes their
    /// addresses behind `frames[first]`; as long as their words are in the window, and [`RUN`] of them at
    /// most. Returns the index that it has got to.
    #[inline(always)]
    pub fn follow_run(
        &mut self,
        index: u64,
        first: u64,
        registers: &mut Registers,
        window: &Window,
        frames: &mut [u64; FRAME_SLOTS],
    ) -> u64 {
        if self.differs != 0 || is_above(index, MAX_USER_FRAMES as u64 - RUN) {
            return index;
        }
        let present = (self.present & 1) as usize;
        let begin = index;
        let (mut index, mut at, mut fp) = (index, self.at, registers.fp);
        for _ in 0..RUN {
            let noted = self.frames[present ^ 1][(at & MASK) as usize];
            let caller_ip = self.frames[present ^ 1][(at + 1 & MASK) as usize].ip;
            let saved_at = noted.sp.wrapping_add(noted.offsets >> 32);
            let return_address_at = noted.sp.wrapping_add(noted.offsets & (BY_FRAME_POINTER - 1));
            let Some((saved, stored)) = window.words_within(saved_at, return_address_at) else {
                break;
            };
            if noted.offsets == 0
                || at + 1 >= self.before_len
                || noted.offsets & BY_FRAME_POINTER != 0 && noted.fp != fp
                || Native::code_address(stored) != caller_ip
            {
                break;
            }
            frames[((first + index) & (FRAME_SLOTS as u64 - 1)) as usize] = noted.ip;
            self.frames[present][(index & MASK) as usize] = Noted { fp, ..noted };
            if saved_at != return_address_at {
                fp = saved;
            }
            at += 1;
            index += 1;
        }
        if index != begin {
            let reached = &self.frames[present ^ 1][(at & MASK) as usize];
            registers.ip = reached.ip;
            registers.sp = reached.sp;
            registers.fp = fp;
            self.at = at;
            self.present_len = index;
        }
        index
    }

    /// Notes a frame that is about to be left by an ordinary step, the one at `index` of this walk.
    #[inline(always)]
    pub fn leave(&mut self, index: u64, registers: &Registers) {
        let noted = &mut self.frames[(self.present & 1) as usize][(index & MASK) as usize];
        noted.ip = registers.ip;
        noted.sp = registers.sp;
        noted.fp = registers.fp;
        noted.offsets = 0;
    }

    /// Notes how it was left, and looks for its caller in the walk before.
    #[inline(always)]
    pub fn arrive(&mut self, index: u64, basis: Basis, registers: &Registers, window: &Window) {
        let present = (self.present & 1) as usize;
        let noted = &mut self.frames[present][(index & MASK) as usize];
        let [saved_at, return_address_at] = window.pair_at.map(|at| at.wrapping_sub(noted.sp));
        let is_near = saved_at >> 32 | return_address_at >> 31 == 0;
        if basis != Basis::Other && is_near {
            let by = if basis == Basis::FramePointer { BY_FRAME_POINTER } else { 0 };
            noted.offsets = saved_at << 32 | by | return_address_at;
        }
        self.present_len = index + 1;

        // Without branches, which Linux 6.1 would follow one by one. Entries beyond the last one are
        // old, but there.
        let before = &self.frames[present ^ 1];
        let mut at = self.at;
        for _ in 0..MAX_PASSED {
            let sp = before[(at & MASK) as usize].sp;
            at = at.wrapping_add(OpaqueSign::of(sp.wrapping_sub(registers.sp) as i64));
        }
        let noted = &before[(at & MASK) as usize];
        self.at = at;
        self.differs = noted.sp ^ registers.sp | noted.ip ^ registers.ip | registers.interrupted;
    }
}
