//! One step from a frame to its caller.

use super::sign::{Sign, choose, mask_of};
use super::{Kind, Rule, Stop};

/// The registers of one frame, in user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer; of a caller, its return address.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer (rbp, x29).
    pub fp: u64,
    /// Not 0: the frame was interrupted, by our event or by a signal, so that `general` is
    /// known and `ip` is the instruction that would have come next. 0: it called another
    /// function, and `ip` is where that returns to.
    pub interrupted: u64,
    /// The other registers, by their DWARF numbers. Anything may be in those that a machine has not.
    pub general: [u64; 32],
}

impl Registers {
    /// An address inside the instruction that the frame is at: a return address can be the
    /// first one of the next function, when a function ends in a call that never returns.
    #[inline(always)]
    pub fn lookup_address(&self) -> u64 {
        self.ip.wrapping_sub(u64::from(self.interrupted == 0))
    }
}

/// Reads the memory of the walked task.
pub trait Memory {
    /// The word at `address`, a multiple of 8. `None` if it cannot be read.
    fn read(&mut self, address: u64) -> Option<u64>;

    /// The words at two addresses, multiples of 8; probably near each other, and the first one
    /// below the second.
    #[inline(always)]
    fn read_two(&mut self, first: u64, second: u64) -> Option<(u64, u64)> {
        Some((self.read(first)?, self.read(second)?))
    }
}

/// What differs between the machines.
pub trait Architecture {
    /// DWARF number of the stack pointer.
    const SP: u64;
    /// DWARF number of the frame pointer.
    const FP: u64;
    /// DWARF number of the link register, on machines that have one.
    const LR: Option<u64>;
    /// Registers that no function restores, as bits by DWARF number. Assembly that reckons its
    /// frame from one of them calls nothing that changes it, so that it still has the value
    /// that it has in the leaf.
    const SCRATCH: u64;

    /// The code address in a stored return address, which may be signed.
    fn code_address(stored: u64) -> u64;

    /// The registers that a signal interrupted, from the frame that the kernel has built at
    /// `regs.sp`.
    fn leave_signal_frame(regs: &mut Registers, memory: &mut impl Memory) -> Option<()>;
}

/// x86_64; DWARF numbers from the psABI, figure 3.36.
#[derive(Clone, Copy, Debug)]
pub struct X86_64;

/// aarch64; DWARF numbers from AADWARF64.
#[derive(Clone, Copy, Debug)]
pub struct Aarch64;

impl Architecture for X86_64 {
    const SP: u64 = 7;
    const FP: u64 = 6;
    const LR: Option<u64> = None;
    /// rax, rdx, rcx, rsi, rdi, r8 to r11.
    const SCRATCH: u64 = 0x0f37;

    #[inline(always)]
    fn code_address(stored: u64) -> u64 {
        stored
    }

    /// `struct rt_sigframe` without the return address: a `ucontext` whose registers
    /// (`struct sigcontext`, arch/x86/include/uapi/asm/sigcontext.h) begin at byte 40.
    #[inline(always)]
    fn leave_signal_frame(regs: &mut Registers, memory: &mut impl Memory) -> Option<()> {
        /// DWARF numbers of r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, in the order of
        /// `struct sigcontext`. rsp and rip follow.
        const ORDER: [usize; 15] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2];
        let frame = regs.sp.wrapping_add(40);
        let mut at = 0;
        while at < ORDER.len() {
            regs.general[ORDER[at]] = memory.read(frame.wrapping_add(at as u64 * 8))?;
            at += 1;
        }
        regs.fp = regs.general[6];
        let sp = memory.read(frame.wrapping_add(15 * 8))?;
        regs.ip = memory.read(frame.wrapping_add(16 * 8))?;
        regs.sp = sp;
        Some(())
    }
}

impl Architecture for Aarch64 {
    const SP: u64 = 31;
    const FP: u64 = 29;
    const LR: Option<u64> = Some(30);
    /// x0 to x17.
    const SCRATCH: u64 = 0x3_ffff;

    /// User addresses have 48 bits (52 only for programs that ask); above them lies the
    /// signature of pointer authentication.
    #[inline(always)]
    fn code_address(stored: u64) -> u64 {
        stored & ((1 << 48) - 1)
    }

    /// `struct rt_sigframe`: 128 bytes of siginfo, 176 of `ucontext` up to `struct
    /// sigcontext` (its fault address, x0 to x30, sp, pc).
    #[inline(always)]
    fn leave_signal_frame(regs: &mut Registers, memory: &mut impl Memory) -> Option<()> {
        let frame = regs.sp.wrapping_add(128 + 176 + 8);
        let mut number = 0;
        while number < 31 {
            regs.general[number] = memory.read(frame.wrapping_add(number as u64 * 8))?;
            number += 1;
        }
        regs.fp = regs.general[29];
        let sp = memory.read(frame.wrapping_add(31 * 8))?;
        regs.ip = memory.read(frame.wrapping_add(32 * 8))?;
        regs.sp = sp;
        Some(())
    }
}

/// Replaces the registers of a frame by those of its caller.
///
/// # Errors
/// Why there is no caller, or none that can be found; the registers are unchanged, or those
/// of neither frame after [`Stop::Unreadable`].
#[inline(always)]
pub fn step<A: Architecture, S: Sign>(
    rule: Rule,
    regs: &mut Registers,
    memory: &mut impl Memory,
) -> Result<(), Stop> {
    // First, as it is nearly always this one.
    if rule.kind() == Kind::Cfa && rule.return_address_offset() != 0 {
        return step_over_frame::<A, S>(rule, regs, memory);
    }
    let cfa;
    let ra_offset;
    match rule.kind() {
        Kind::Cfa => {
            cfa = base_register::<A>(rule, regs)?.wrapping_add_signed(rule.offset());
            ra_offset = rule.return_address_offset();
        }
        Kind::CfaDeref => {
            let base = base_register::<A>(rule, regs)?;
            let stored = read(memory, base.wrapping_add_signed(rule.offset()))?;
            cfa = stored.wrapping_add_signed(rule.return_address_offset());
            ra_offset = -8;
        }
        Kind::Plt => {
            let pushed = u64::from((regs.ip & 15) >= rule.offset() as u64);
            cfa = regs.sp.wrapping_add(8 + pushed * 8);
            ra_offset = -8;
        }
        Kind::FramePointer => return step_frame_pointer::<A>(regs, memory),
        Kind::SignalFrame => {
            if regs.sp & 7 != 0 {
                return Err(Stop::BrokenChain);
            }
            A::leave_signal_frame(regs, memory).ok_or(Stop::Unreadable)?;
            regs.interrupted = 1;
            return Ok(());
        }
        Kind::EndOfStack => return Err(Stop::End),
        Kind::NoInfo => return Err(Stop::NoInfo),
        Kind::Unsupported => return Err(Stop::BadRule),
    }
    // Stacks grow down, so each frame lies above the one that it called; only a leaf that
    // keeps its return address in a register may have no frame at all.
    let in_register = ra_offset == 0;
    if cfa <= regs.sp && !(in_register && cfa == regs.sp) {
        return Err(Stop::BrokenChain);
    }
    let fp_offset = rule.frame_pointer_offset();
    let fp = if rule.frame_pointer_is_at_itself() {
        read(memory, regs.fp.wrapping_add_signed(fp_offset))?
    } else if fp_offset != 0 {
        read(memory, cfa.wrapping_add_signed(fp_offset))?
    } else {
        regs.fp
    };
    let stored = if in_register {
        match A::LR {
            // Callers have put theirs on the stack.
            Some(lr) if regs.interrupted != 0 => regs.general[(lr & 31) as usize],
            _ => return Err(Stop::BadRule),
        }
    } else {
        read(memory, cfa.wrapping_add_signed(ra_offset))?
    };
    enter_caller::<A>(regs, cfa, fp, stored)
}

/// A step by the rule of most code, with no branch that goes one way here and another way there:
/// the saved frame pointer is read in any case, and is that or the return address once more.
#[inline(always)]
fn step_over_frame<A: Architecture, S: Sign>(
    rule: Rule,
    regs: &mut Registers,
    memory: &mut impl Memory,
) -> Result<(), Stop> {
    let cfa = base_register::<A>(rule, regs)?.wrapping_add_signed(rule.offset());
    if cfa <= regs.sp {
        return Err(Stop::BrokenChain);
    }
    let return_address_at = cfa.wrapping_add_signed(rule.return_address_offset());
    let is_at_itself = u64::from(rule.frame_pointer_is_at_itself()).wrapping_neg();
    let is_saved = mask_of::<S>(rule.saves_frame_pointer());
    let saved_at =
        choose(is_at_itself, regs.fp, cfa).wrapping_add_signed(rule.frame_pointer_offset());
    let saved_at = choose(is_saved, saved_at, return_address_at);
    if (return_address_at | saved_at) & 7 != 0 {
        return Err(Stop::BrokenChain);
    }
    let (saved, stored) = memory.read_two(saved_at, return_address_at).ok_or(Stop::Unreadable)?;
    let fp = choose(is_saved, saved, regs.fp);
    enter_caller::<A>(regs, cfa, fp, stored)
}

/// ```text
/// caller.fp = [fp]        caller.ip = [fp + 8]        caller.sp = fp + 16
/// ```
///
/// This layout is the same on x86_64 (`push rbp; mov rbp, rsp`) and aarch64 (AAPCS64 frame
/// records).
#[inline(always)]
fn step_frame_pointer<A: Architecture>(
    regs: &mut Registers,
    memory: &mut impl Memory,
) -> Result<(), Stop> {
    if regs.fp == 0 {
        return Err(Stop::End);
    }
    if regs.fp < regs.sp {
        return Err(Stop::BrokenChain);
    }
    let fp = read(memory, regs.fp)?;
    let stored = read(memory, regs.fp.wrapping_add(8))?;
    enter_caller::<A>(regs, regs.fp.wrapping_add(16), fp, stored)
}

#[inline(always)]
fn enter_caller<A: Architecture>(
    regs: &mut Registers,
    sp: u64,
    fp: u64,
    stored: u64,
) -> Result<(), Stop> {
    let ip = A::code_address(stored);
    if ip == 0 {
        return Err(Stop::End);
    }
    regs.ip = ip;
    regs.sp = sp;
    regs.fp = fp;
    regs.interrupted = 0;
    Ok(())
}

#[inline(always)]
fn base_register<A: Architecture>(rule: Rule, regs: &Registers) -> Result<u64, Stop> {
    let base = rule.base();
    if base == A::SP {
        Ok(regs.sp)
    } else if base == A::FP {
        Ok(regs.fp)
    } else if regs.interrupted != 0 || A::SCRATCH >> base & 1 != 0 {
        Ok(regs.general[(base & 31) as usize])
    } else {
        Err(Stop::BadRule)
    }
}

#[inline(always)]
fn read(memory: &mut impl Memory, address: u64) -> Result<u64, Stop> {
    if address & 7 != 0 {
        return Err(Stop::BrokenChain);
    }
    memory.read(address).ok_or(Stop::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::{FrameRule, PlainSign, ReturnAddress, SavedFramePointer};

    const STACK: u64 = 0x7000;
    /// DWARF numbers.
    const RAX: u16 = 0;
    const RBX: u16 = 3;

    /// Words from `STACK` on.
    struct Words<'a>(&'a [u64]);

    impl Memory for Words<'_> {
        fn read(&mut self, address: u64) -> Option<u64> {
            let at = usize::try_from(address.checked_sub(STACK)? / 8).ok()?;
            self.0.get(at).copied()
        }
    }

    fn regs(ip: u64, sp: u64, fp: u64) -> Registers {
        Registers { ip, sp, fp, interrupted: 1, general: [0; 32] }
    }

    fn cfa(base: u64, offset: i64, frame_pointer: SavedFramePointer) -> Rule {
        let return_address = ReturnAddress::AtCfa(-8);
        Rule::cfa(FrameRule { base: base as u16, offset, frame_pointer, return_address }).unwrap()
    }

    /// Takes one step and compares (ip, sp, fp), or the reason why there is none.
    fn check(
        rule: Rule,
        mut from: Registers,
        stack: &[u64],
        expected: Result<(u64, u64, u64), Stop>,
    ) {
        let stepped = step::<X86_64, PlainSign>(rule, &mut from, &mut Words(stack));
        assert_eq!(stepped.map(|()| (from.ip, from.sp, from.fp)), expected, "{rule:?}");
    }

    #[test]
    fn frame_is_reckoned_from_stack_or_frame_pointer() {
        let sp = |saved| cfa(X86_64::SP, 16, saved);
        let unchanged = SavedFramePointer::Unchanged;
        check(sp(unchanged), regs(1, STACK, 7), &[8, 9], Ok((9, STACK + 16, 7)));
        let saved = SavedFramePointer::AtCfa(-16);
        check(sp(saved), regs(1, STACK, 7), &[8, 9], Ok((9, STACK + 16, 8)));
        let fp = cfa(X86_64::FP, 16, saved);
        check(fp, regs(1, STACK, STACK + 8), &[0, 8, 9], Ok((9, STACK + 24, 8)));
    }

    #[test]
    fn registers_that_functions_restore_are_known_in_the_leaf_only() {
        let in_caller = [(RAX, Ok((9, STACK + 16, 7))), (RBX, Err(Stop::BadRule))];
        for (register, expected) in in_caller {
            let rule = cfa(register.into(), 8, SavedFramePointer::Unchanged);
            let mut leaf = regs(1, STACK, 7);
            leaf.general[usize::from(register)] = STACK + 8;
            check(rule, leaf, &[0, 9], Ok((9, STACK + 16, 7)));
            check(rule, Registers { interrupted: 0, ..leaf }, &[0, 9], expected);
        }
    }

    #[test]
    fn realigned_frame_is_found_by_its_saved_address() {
        // gcc: CFA = [rbp - 8], rbp = [rbp]; the caller's frame begins at STACK + 40.
        let rule = Rule::cfa_deref(6, -8, 0, SavedFramePointer::AtFramePointer(0)).unwrap();
        let stack = [0, STACK + 40, 0x77, 0, 9];
        check(rule, regs(1, STACK, STACK + 16), &stack, Ok((9, STACK + 40, 0x77)));
        // OpenSSL: CFA = [rsp + 8] + 8.
        let rule = Rule::cfa_deref(7, 8, 8, SavedFramePointer::AtCfa(-16)).unwrap();
        let stack = [0, STACK + 32, 0, 0x77, 9];
        check(rule, regs(1, STACK, 0), &stack, Ok((9, STACK + 40, 0x77)));
    }

    #[test]
    fn linkage_table_entry_has_pushed_from_some_byte_on() {
        let rule = Rule::plt(11).unwrap();
        check(rule, regs(0x100a, STACK, 7), &[9, 10], Ok((9, STACK + 8, 7)));
        check(rule, regs(0x100b, STACK, 7), &[9, 10], Ok((10, STACK + 16, 7)));
    }

    #[test]
    fn frame_pointers_are_followed_to_zero() {
        let rule = Rule::FRAME_POINTER;
        check(rule, regs(1, STACK, STACK), &[STACK + 16, 9], Ok((9, STACK + 16, STACK + 16)));
        check(rule, regs(1, STACK, STACK), &[STACK + 16, 0], Err(Stop::End));
        check(rule, regs(1, STACK, 0), &[], Err(Stop::End));
        check(rule, regs(1, STACK, STACK - 8), &[], Err(Stop::BrokenChain));
        check(rule, regs(1, STACK, STACK + 4), &[1, 2], Err(Stop::BrokenChain));
        check(rule, regs(1, STACK, STACK), &[STACK], Err(Stop::Unreadable));
    }

    #[test]
    fn stack_must_rise() {
        let rule = cfa(X86_64::FP, 16, SavedFramePointer::Unchanged);
        check(rule, regs(1, STACK, STACK - 16), &[1, 2], Err(Stop::BrokenChain));
        let rule = Rule::cfa_deref(7, 0, 0, SavedFramePointer::Unchanged).unwrap();
        check(rule, regs(1, STACK, 0), &[STACK, 2], Err(Stop::BrokenChain));
    }

    #[test]
    fn rules_without_a_caller_say_why() {
        check(Rule::END_OF_STACK, regs(1, STACK, 0), &[], Err(Stop::End));
        check(Rule::NO_INFO, regs(1, STACK, 0), &[], Err(Stop::NoInfo));
        check(Rule::UNSUPPORTED, regs(1, STACK, 0), &[], Err(Stop::BadRule));
        let rule = cfa(X86_64::SP, 8, SavedFramePointer::Unchanged);
        check(rule, regs(1, STACK, 0), &[0], Err(Stop::End));
    }

    #[test]
    fn signal_frame_gives_back_all_registers() {
        let mut stack = [0; 25];
        for (at, word) in stack.iter_mut().enumerate() {
            *word = 100 + at as u64;
        }
        let mut regs = Registers { interrupted: 0, ..regs(1, STACK, 0) };
        step::<X86_64, PlainSign>(Rule::SIGNAL_FRAME, &mut regs, &mut Words(&stack)).unwrap();
        assert_eq!((regs.ip, regs.sp, regs.fp), (121, 120, 115));
        assert_eq!((regs.general[8], regs.general[2], regs.interrupted), (105, 119, 1));
        let mut regs = Registers { sp: STACK + 4, ..regs };
        let stepped = step::<X86_64, PlainSign>(Rule::SIGNAL_FRAME, &mut regs, &mut Words(&stack));
        assert_eq!(stepped, Err(Stop::BrokenChain));
    }

    #[test]
    fn link_register_holds_the_return_address_of_a_leaf_only() {
        let rule = Rule::cfa(FrameRule {
            base: 31,
            offset: 0,
            frame_pointer: SavedFramePointer::Unchanged,
            return_address: ReturnAddress::InLinkRegister,
        })
        .unwrap();
        let mut leaf = regs(1, STACK, 7);
        leaf.general[30] = 0x00a5_0000_0000_4321;
        let mut stepped = leaf;
        assert_eq!(step::<Aarch64, PlainSign>(rule, &mut stepped, &mut Words(&[])), Ok(()));
        assert_eq!((stepped.ip, stepped.sp, stepped.fp), (0x4321, STACK, 7));
        assert_eq!(
            step::<Aarch64, PlainSign>(rule, &mut stepped, &mut Words(&[])),
            Err(Stop::BadRule)
        );
    }
}
