//! From a row of call frame information to a packed rule.

use everflame_agent_common::unwind::{FrameRule, ReturnAddress, Rule, SavedFramePointer};
use gimli::{Encoding, Expression, Operation};

use crate::elf::Arch;
use crate::entries::Bytes;
use crate::program::{Cfa, Columns, Saved, State};

/// Why a row has no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The CFA is computed by an expression of an unknown shape.
    CfaExpression,
    /// The caller's stack pointer is not the CFA.
    StackPointer,
    /// The frame pointer is in another register, or a computed value.
    FramePointer,
    /// The return address is in another register, or a computed value, or not mentioned.
    ReturnAddress,
    /// A signal trampoline that does not look like the kernel's frame.
    SignalFrame,
    /// A number is too large, or not a multiple of a word; a register is not a general one.
    Range,
    /// The program that makes the row breaks off, or does what no program may.
    Malformed,
}

impl Cause {
    /// All causes, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::CfaExpression,
        Self::StackPointer,
        Self::FramePointer,
        Self::ReturnAddress,
        Self::SignalFrame,
        Self::Range,
        Self::Malformed,
    ];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CfaExpression => "cfa expression",
            Self::StackPointer => "stack pointer",
            Self::FramePointer => "frame pointer expression",
            Self::ReturnAddress => "return address expression",
            Self::SignalFrame => "signal frame",
            Self::Range => "offset out of range",
            Self::Malformed => "malformed program",
        }
    }
}

/// What the rules of one function have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) arch: Arch,
    pub(crate) encoding: Encoding,
    /// The section that expressions lie in.
    pub(crate) section: Bytes<'a>,
    /// Augmentation `S`.
    pub(crate) is_signal_frame: bool,
    /// The register that holds the return address in the CIE's view.
    pub(crate) return_address: u16,
}

impl Arch {
    pub(crate) fn columns(self) -> Columns {
        match self {
            Self::X86_64 => Columns { stack_pointer: 7, frame_pointer: 6, return_address: 16 },
            Self::Aarch64 => Columns { stack_pointer: 31, frame_pointer: 29, return_address: 30 },
        }
    }
}

/// Shapes of expressions that compilers and assemblers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// `register + offset`
    Sum { register: u16, offset: i64 },
    /// `[register + offset] + addend`
    Deref { register: u16, offset: i64, addend: i64 },
    /// An entry of the procedure linkage table, see [`Rule::plt`].
    Plt { pushed_from: u8 },
}

impl Context<'_> {
    pub(crate) fn rule(&self, state: &State) -> Result<Rule, Cause> {
        // Some code of glibc for aarch64 is called with the return address in x15.
        if self.return_address != self.arch.columns().return_address {
            return Err(Cause::ReturnAddress);
        }
        if state.return_address == Saved::Undefined {
            return Ok(Rule::END_OF_STACK);
        }
        let Cfa { register, offset, expression } = state.cfa;
        let cfa = match expression {
            None => Shape::Sum { register, offset },
            Some(expression) => self.shape(expression).ok_or(if self.is_signal_frame {
                Cause::SignalFrame
            } else {
                Cause::CfaExpression
            })?,
        };
        if self.is_signal_frame {
            return self.signal_frame(cfa);
        }
        // The caller's stack pointer is the CFA, except in the likes of `swapcontext`.
        if state.stack_pointer != Saved::Unspecified {
            return Err(Cause::StackPointer);
        }
        let return_address = match (self.arch, state.return_address) {
            (_, Saved::AtCfa(offset)) => ReturnAddress::AtCfa(offset),
            (Arch::Aarch64, Saved::SameValue | Saved::Unspecified) => ReturnAddress::InLinkRegister,
            _ => return Err(Cause::ReturnAddress),
        };
        if let Shape::Sum { register, .. } | Shape::Deref { register, .. } = cfa
            && self.arch == Arch::X86_64
            && register >= self.arch.columns().return_address
        {
            // No general register, whose values alone are known of a frame.
            return Err(Cause::Range);
        }
        let is_above_return_address = return_address == ReturnAddress::AtCfa(-8);
        match cfa {
            Shape::Sum { register: base, offset } => {
                let frame_pointer = self.frame_pointer(state)?;
                Rule::cfa(FrameRule { base, offset, frame_pointer, return_address })
            }
            Shape::Deref { .. } | Shape::Plt { .. } if !is_above_return_address => {
                return Err(Cause::ReturnAddress);
            }
            Shape::Deref { register, offset, addend } => {
                let saved = self.frame_pointer(state)?;
                Rule::cfa_deref(register, offset, addend, saved)
            }
            Shape::Plt { pushed_from } => match self.frame_pointer(state)? {
                SavedFramePointer::Unchanged => Rule::plt(pushed_from),
                _ => return Err(Cause::FramePointer),
            },
        }
        .ok_or(Cause::Range)
    }

    /// On x86_64, libc's `__restore_rt` says where the kernel has put the stack pointer:
    /// byte 160 of the `ucontext` that the stack pointer is at. On aarch64 the vDSO's
    /// trampoline tells of the frame record only, which lies in the same frame.
    fn signal_frame(&self, cfa: Shape) -> Result<Rule, Cause> {
        let is_known = match self.arch {
            Arch::X86_64 => cfa == Shape::Deref { register: 7, offset: 160, addend: 0 },
            Arch::Aarch64 => true,
        };
        if is_known { Ok(Rule::SIGNAL_FRAME) } else { Err(Cause::SignalFrame) }
    }

    fn frame_pointer(&self, state: &State) -> Result<SavedFramePointer, Cause> {
        match state.frame_pointer {
            Saved::Unspecified | Saved::Undefined | Saved::SameValue => {
                Ok(SavedFramePointer::Unchanged)
            }
            Saved::AtCfa(offset) => Ok(SavedFramePointer::AtCfa(offset)),
            Saved::At(expression) => match self.shape(expression) {
                Some(Shape::Sum { register, offset })
                    if register == self.arch.columns().frame_pointer =>
                {
                    Ok(SavedFramePointer::AtFramePointer(offset))
                }
                _ => Err(Cause::FramePointer),
            },
            Saved::Elsewhere => Err(Cause::FramePointer),
        }
    }

    fn shape(&self, expression: gimli::UnwindExpression<usize>) -> Option<Shape> {
        use Operation as O;
        let end = expression.offset.checked_add(expression.length)?;
        let bytes = self.section.slice().get(expression.offset..end)?;
        let bytes = Bytes::new(bytes, gimli::LittleEndian);
        let mut operations = Expression(bytes).operations(self.encoding);
        let mut next = || operations.next().ok();
        let O::RegisterOffset { register, offset, .. } = next()?? else { return None };
        match next()? {
            None => Some(Shape::Sum { register: register.0, offset }),
            Some(O::Deref { size: 8, space: false, .. }) => {
                let addend = match next()? {
                    None => 0,
                    Some(O::PlusConstant { value }) if next()?.is_none() => {
                        i64::try_from(value).ok()?
                    }
                    Some(_) => return None,
                };
                Some(Shape::Deref { register: register.0, offset, addend })
            }
            // breg7 8; breg16 0; lit15; and; litN; ge; lit3; shl; plus
            Some(O::RegisterOffset { register: gimli::X86_64::RA, offset: 0, .. })
                if register == gimli::X86_64::RSP
                    && offset == 8
                    && self.arch == Arch::X86_64
                    && next()? == Some(O::UnsignedConstant { value: 15 })
                    && next()? == Some(O::And) =>
            {
                let Some(O::UnsignedConstant { value }) = next()? else { return None };
                let rest = [O::Ge, O::UnsignedConstant { value: 3 }, O::Shl, O::Plus];
                for expected in rest {
                    if next()? != Some(expected) {
                        return None;
                    }
                }
                let pushed_from = u8::try_from(value).ok()?;
                next()?.is_none().then_some(Shape::Plt { pushed_from })
            }
            Some(_) => None,
        }
    }
}
