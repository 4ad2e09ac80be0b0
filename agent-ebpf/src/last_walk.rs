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
    unwind::{Architecture as _, Registers, Sign as _, choose, mask_of},
};

use crate::unwind::{Native, OpaqueSign, Window, is_above};

const MASK: u64 = MAX_USER_FRAMES as u64 - 1;

const _: () = assert!(MAX_USER_FRAMES.is_power_of_two());

/// Frames that are gone over at once, at most.
const RUN: u64 = 8;

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
    /// Frame pointers in those frames whose callers depend on it.
    frame_pointers: [[u64; MAX_USER_FRAMES]; 2],
}

/// A frame, and what led from it to its caller; in two words, as deep stacks are many of them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Noted {
    /// The address; in its upper 16 bits how many words above `sp` the return address lies, and
    /// [`BY_FRAME_POINTER`]. They are 0 if the caller depends on anything else.
    ip: u64,
    /// The stack pointer; in its upper 16 bits how many words above it the frame pointer was saved, or the
    /// return address lies if it was not.
    sp: u64,
}

/// User addresses have 48 bits at most; a frame with others is never followed.
const ADDRESS_BITS: u32 = 48;

const ADDRESS: u64 = (1 << ADDRESS_BITS) - 1;

/// In [`Noted::ip`]: the frame pointer has to be the same, too.
const BY_FRAME_POINTER: u64 = 1 << 63;

/// From the stack pointer to a word, in bytes.
const MAX_OFFSET: u64 = (1 << 15) * 8;

impl Noted {
    #[inline(always)]
    fn ip(self) -> u64 {
        self.ip & ADDRESS
    }

    #[inline(always)]
    fn sp(self) -> u64 {
        self.sp & ADDRESS
    }

    /// Places of the saved frame pointer and of the return address, in words of the window; whatever they are
    /// for a frame that is not to be followed.
    #[inline(always)]
    fn places(self, window: &Window) -> [u64; 2] {
        let sp = window.place(self.sp());
        let return_address = (self.ip & !BY_FRAME_POINTER) >> ADDRESS_BITS;
        [self.sp >> ADDRESS_BITS, return_address].map(|words| sp.wrapping_add(words))
    }
}

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

    /// Whether the walk before has been at the same frame.
    #[inline(always)]
    pub fn knows_frame(&self) -> bool {
        self.differs == 0
    }

    /// Goes from the frame at `index` of this walk to its caller, and on from there, as long as the walk before
    /// did so and the words that led there are the same; over [`RUN`] frames at most, and those whose words
    /// are in the window, which is moved to the first. Writes their addresses behind `frames[first]`. Returns the
    /// index that it has got to.
    #[inline(always)]
    pub fn follow(
        &mut self,
        index: u64,
        first: u64,
        registers: &mut Registers,
        window: &mut Window,
        frames: &mut [u64; FRAME_SLOTS],
    ) -> u64 {
        if self.differs != 0 || is_above(index, MAX_USER_FRAMES as u64 - RUN) {
            return index;
        }
        let present = (self.present & 1) as usize;
        let begin = index;
        let (mut index, mut at, mut fp) = (index, self.at, registers.fp);
        let mut noted = self.frames[present ^ 1][(at & MASK) as usize];
        if noted.ip >> ADDRESS_BITS == 0 {
            return index;
        }
        let [saved_at, return_address_at] = noted.places(window);
        if window.words_at(saved_at, return_address_at).is_none() {
            window.move_to(noted.sp() + (noted.sp >> ADDRESS_BITS << 3));
        }
        for _ in 0..RUN {
            let caller = self.frames[present ^ 1][(at + 1 & MASK) as usize];
            let [saved_at, return_address_at] = noted.places(window);
            let Some((saved, stored)) = window.words_at(saved_at, return_address_at) else {
                break;
            };
            if noted.ip >> ADDRESS_BITS == 0
                || at + 1 >= self.before_len
                || Native::code_address(stored) != caller.ip()
            {
                break;
            }
            if noted.ip & BY_FRAME_POINTER != 0 {
                if self.frame_pointers[present ^ 1][(at & MASK) as usize] != fp {
                    break;
                }
                self.frame_pointers[present][(index & MASK) as usize] = fp;
            }
            frames[((first + index) & (FRAME_SLOTS as u64 - 1)) as usize] = noted.ip();
            self.frames[present][(index & MASK) as usize] = noted;
            // Without a branch, which goes one way here and another there.
            let is_saved = mask_of::<OpaqueSign>(saved_at ^ return_address_at);
            fp = choose(is_saved, saved, fp);
            at += 1;
            index += 1;
            noted = caller;
        }
        if index != begin {
            registers.ip = noted.ip();
            registers.sp = noted.sp();
            registers.fp = fp;
            self.at = at;
            self.present_len = index;
        }
        index
    }

    /// Notes a frame that is about to be left by an ordinary step, the one at `index` of this walk.
    #[inline(always)]
    pub fn leave(&mut self, index: u64, registers: &Registers) {
        let present = (self.present & 1) as usize;
        let (ip, sp) = (registers.ip & ADDRESS, registers.sp & ADDRESS);
        self.frames[present][(index & MASK) as usize] = Noted { ip, sp };
        self.frame_pointers[present][(index & MASK) as usize] = registers.fp;
    }

    /// Notes how it was left, and looks for its caller in the walk before.
    #[inline(always)]
    pub fn arrive(&mut self, index: u64, basis: Basis, registers: &Registers, window: &Window) {
        let present = (self.present & 1) as usize;
        let noted = &mut self.frames[present][(index & MASK) as usize];
        let [saved_at, return_address_at] = window.pair_at.map(|at| at.wrapping_sub(noted.sp));
        let either = saved_at | return_address_at;
        // The caller's stack pointer is taken from its note, too.
        let is_near = either < MAX_OFFSET && either & 7 == 0 && registers.sp <= ADDRESS;
        if basis != Basis::Other && is_near {
            let by = if basis == Basis::FramePointer { BY_FRAME_POINTER } else { 0 };
            noted.ip |= by | return_address_at >> 3 << ADDRESS_BITS;
            noted.sp |= saved_at >> 3 << ADDRESS_BITS;
        }
        self.present_len = index + 1;

        // Without branches, which Linux 6.1 would follow one by one. Entries beyond the last one are
        // old, but there.
        let before = &self.frames[present ^ 1];
        let mut at = self.at;
        for _ in 0..MAX_PASSED {
            let sp = before[(at & MASK) as usize].sp();
            at = at.wrapping_add(OpaqueSign::of(sp.wrapping_sub(registers.sp) as i64));
        }
        let noted = before[(at & MASK) as usize];
        self.at = at;
        self.differs =
            noted.sp() ^ registers.sp | noted.ip() ^ registers.ip | registers.interrupted;
    }
}
