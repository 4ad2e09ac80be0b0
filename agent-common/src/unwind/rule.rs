//! How to get from one frame to its caller, in 64 bits.
//!
//! ```text
//!  bits   0..4    kind
//!         4..9    base: a DWARF register number
//!         9       the saved frame pointer lies relative to the frame pointer, not to the CFA
//!        10..34   CFA offset in bytes, signed
//!        34..49   where the frame pointer is saved, in words, signed; 0: it is unchanged
//!        49..64   where the return address is saved, in words from the CFA, signed;
//!                 0: in the link register. Of [`Kind::CfaDeref`]: what is added, in words
//! ```
//!
//! The canonical frame address (CFA) is the caller's stack pointer, as in DWARF (section 6.4).
//! A rule of all zeros is [`Kind::NoInfo`].

use core::fmt;

const KIND_BITS: u32 = 4;
const BASE_SHIFT: u32 = 4;
const BASE_MASK: u64 = 31;
const FP_FROM_FP: u64 = 1 << 9;
const CFA_SHIFT: u32 = 10;
const CFA_BITS: u32 = 24;
const FP_SHIFT: u32 = 34;
const RA_SHIFT: u32 = 49;
const WORD_OFFSET_BITS: u32 = 15;

/// What a rule does.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Nothing is known about this code.
    NoInfo = 0,
    /// `CFA = base + offset`.
    Cfa = 1,
    /// `CFA = [base + offset] + addend`; the return address lies in the word below.
    CfaDeref = 2,
    /// An entry of x86_64's procedure linkage table, whose push happens in its midst:
    /// `CFA = sp + 8 + ((ip & 15) >= offset ? 8 : 0)`.
    Plt = 3,
    /// Code that keeps a chain of frame pointers.
    FramePointer = 4,
    /// The return trampoline of a signal handler: all registers are on the stack.
    SignalFrame = 5,
    /// The outermost function of a thread.
    EndOfStack = 6,
    /// There is a rule, but not one that can be written down here.
    Unsupported = 7,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::NoInfo,
        Self::Cfa,
        Self::CfaDeref,
        Self::Plt,
        Self::FramePointer,
        Self::SignalFrame,
        Self::EndOfStack,
        Self::Unsupported,
    ];
}

/// Where the caller's frame pointer is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SavedFramePointer {
    /// It is still in its register.
    Unchanged,
    /// At this offset from the CFA, in bytes.
    AtCfa(i64),
    /// At this offset from what is in the frame pointer's register now, in bytes.
    AtFramePointer(i64),
}

/// Where the return address is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReturnAddress {
    /// In the link register.
    InLinkRegister,
    /// At this offset from the CFA, in bytes.
    AtCfa(i64),
}

/// A rule of [`Kind::Cfa`], spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRule {
    /// DWARF number of the register that the CFA is reckoned from.
    pub base: u16,
    /// What is added to it, in bytes.
    pub offset: i64,
    /// The caller's frame pointer.
    pub frame_pointer: SavedFramePointer,
    /// The return address.
    pub return_address: ReturnAddress,
}

/// One packed rule.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule(u64);

impl Rule {
    /// Nothing is known about this code.
    pub const NO_INFO: Self = Self(Kind::NoInfo as u64);
    /// Code that keeps a chain of frame pointers.
    pub const FRAME_POINTER: Self = Self(Kind::FramePointer as u64);
    /// The return trampoline of a signal handler.
    pub const SIGNAL_FRAME: Self = Self(Kind::SignalFrame as u64);
    /// The outermost function of a thread.
    pub const END_OF_STACK: Self = Self(Kind::EndOfStack as u64);
    /// A rule that cannot be written down.
    pub const UNSUPPORTED: Self = Self(Kind::Unsupported as u64);

    /// `CFA = base + offset`. `None` if a part does not fit.
    pub fn cfa(rule: FrameRule) -> Option<Self> {
        let return_address = match rule.return_address {
            ReturnAddress::InLinkRegister => 0,
            ReturnAddress::AtCfa(0) => return None,
            ReturnAddress::AtCfa(offset) => words(offset)?,
        };
        Some(Self(
            Kind::Cfa as u64
                | base(rule.base)?
                | field(rule.offset, CFA_BITS)? << CFA_SHIFT
                | frame_pointer(rule.frame_pointer)?
                | return_address << RA_SHIFT,
        ))
    }

    /// `CFA = [base + offset] + addend`. `None` if a part does not fit.
    pub fn cfa_deref(
        base_register: u16,
        offset: i64,
        addend: i64,
        saved: SavedFramePointer,
    ) -> Option<Self> {
        Some(Self(
            Kind::CfaDeref as u64
                | base(base_register)?
                | field(offset, CFA_BITS)? << CFA_SHIFT
                | frame_pointer(saved)?
                | words(addend)? << RA_SHIFT,
        ))
    }

    /// A procedure linkage table whose entries, of 16 bytes, have pushed once the low four
    /// bits of the address have reached `pushed_from`.
    pub fn plt(pushed_from: u8) -> Option<Self> {
        (pushed_from <= 16).then(|| Self(Kind::Plt as u64 | u64::from(pushed_from) << CFA_SHIFT))
    }

    /// The rule with these bits; every value is one.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As stored.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What it does; unknown numbers are unsupported.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        match self.0 & ((1 << KIND_BITS) - 1) {
            0 => Kind::NoInfo,
            1 => Kind::Cfa,
            2 => Kind::CfaDeref,
            3 => Kind::Plt,
            4 => Kind::FramePointer,
            5 => Kind::SignalFrame,
            6 => Kind::EndOfStack,
            _ => Kind::Unsupported,
        }
    }

    /// The register that the CFA is reckoned from, 0 to 31.
    #[inline(always)]
    pub const fn base(self) -> u64 {
        self.0 >> BASE_SHIFT & BASE_MASK
    }

    /// What is added to the base, in bytes; of [`Kind::Plt`], where the push has happened.
    #[inline(always)]
    pub const fn offset(self) -> i64 {
        signed(self.0, CFA_SHIFT, CFA_BITS)
    }

    /// Where the frame pointer is saved, in bytes.
    #[inline(always)]
    pub const fn frame_pointer_offset(self) -> i64 {
        signed(self.0, FP_SHIFT, WORD_OFFSET_BITS) * 8
    }

    /// Whether that is relative to the frame pointer's register.
    #[inline(always)]
    pub const fn frame_pointer_is_at_itself(self) -> bool {
        self.0 & FP_FROM_FP != 0
    }

    /// Not 0 if the frame pointer is saved anywhere.
    #[inline(always)]
    pub const fn saves_frame_pointer(self) -> u64 {
        const OFFSET: u64 = ((1 << WORD_OFFSET_BITS) - 1) << FP_SHIFT;
        self.0 & (FP_FROM_FP | OFFSET)
    }

    /// Where the return address is saved, in bytes from the CFA (0: in the link register); of
    /// [`Kind::CfaDeref`] what is added to the CFA.
    #[inline(always)]
    pub const fn return_address_offset(self) -> i64 {
        signed(self.0, RA_SHIFT, WORD_OFFSET_BITS) * 8
    }
}

/// Sign-extends a field.
#[inline(always)]
const fn signed(bits: u64, shift: u32, width: u32) -> i64 {
    ((bits << (64 - shift - width)) as i64) >> (64 - width)
}

/// A signed field of this width, or `None` if the value does not fit.
fn field(value: i64, width: u32) -> Option<u64> {
    let limit = 1i64 << (width - 1);
    (-limit..limit).contains(&value).then(|| value as u64 & ((1 << width) - 1))
}

fn words(offset: i64) -> Option<u64> {
    if offset % 8 != 0 {
        return None;
    }
    field(offset / 8, WORD_OFFSET_BITS)
}

fn base(register: u16) -> Option<u64> {
    let register = u64::from(register);
    (register <= BASE_MASK).then_some(register << BASE_SHIFT)
}

fn frame_pointer(saved: SavedFramePointer) -> Option<u64> {
    match saved {
        SavedFramePointer::Unchanged => Some(0),
        // Nothing is saved where the caller's frame begins; 0 stands for "unchanged".
        SavedFramePointer::AtCfa(0) => None,
        SavedFramePointer::AtCfa(offset) => Some(words(offset)? << FP_SHIFT),
        SavedFramePointer::AtFramePointer(offset) => Some(words(offset)? << FP_SHIFT | FP_FROM_FP),
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({:?}", self.kind())?;
        if matches!(self.kind(), Kind::Cfa | Kind::CfaDeref | Kind::Plt) {
            let origin = if self.frame_pointer_is_at_itself() { "fp" } else { "cfa" };
            write!(
                f,
                " r{}{:+} fp@{origin}{:+} ra{:+}",
                self.base(),
                self.offset(),
                self.frame_pointer_offset(),
                self.return_address_offset()
            )?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_as_they_went_in() {
        for (offset, frame_pointer, return_address) in
            [(16, -16, -8), (-8, -131_072, -16), (8_388_607, 131_064, 8), (-8_388_608, -8, -4096)]
        {
            let rule = Rule::cfa(FrameRule {
                base: 31,
                offset,
                frame_pointer: SavedFramePointer::AtCfa(frame_pointer),
                return_address: ReturnAddress::AtCfa(return_address),
            })
            .unwrap();
            assert_eq!((rule.kind(), rule.base(), rule.offset()), (Kind::Cfa, 31, offset));
            assert_eq!(rule.frame_pointer_offset(), frame_pointer);
            assert_eq!(rule.return_address_offset(), return_address);
            assert!(!rule.frame_pointer_is_at_itself());
        }
        let drap = Rule::cfa_deref(6, -8, 0, SavedFramePointer::AtFramePointer(0)).unwrap();
        assert_eq!((drap.kind(), drap.base(), drap.offset()), (Kind::CfaDeref, 6, -8));
        assert!(drap.frame_pointer_is_at_itself());
        assert_eq!(Rule::plt(11).map(|rule| (rule.kind(), rule.offset())), Some((Kind::Plt, 11)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let rule = FrameRule {
            base: 7,
            offset: 16,
            frame_pointer: SavedFramePointer::Unchanged,
            return_address: ReturnAddress::AtCfa(-8),
        };
        assert!(Rule::cfa(rule).is_some());
        assert!(Rule::cfa(FrameRule { base: 32, ..rule }).is_none());
        assert!(Rule::cfa(FrameRule { offset: 1 << 23, ..rule }).is_none());
        for offset in [0, -12, 1 << 17] {
            let frame_pointer = SavedFramePointer::AtCfa(offset);
            assert!(Rule::cfa(FrameRule { frame_pointer, ..rule }).is_none(), "{offset}");
            let return_address = ReturnAddress::AtCfa(offset);
            assert!(Rule::cfa(FrameRule { return_address, ..rule }).is_none(), "{offset}");
        }
        assert!(Rule::plt(17).is_none());
    }

    #[test]
    fn every_kind_has_its_number_and_unknown_ones_are_unsupported() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(Rule::from_bits(number as u64).kind(), kind);
        }
        assert_eq!(Rule::from_bits(15).kind(), Kind::Unsupported);
    }
}
