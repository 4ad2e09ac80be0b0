//! Rules in words, as `unwind-info` prints them.

use std::fmt;

use everflame_agent_common::unwind::{Aarch64, Architecture, Kind, Rule, X86_64};

use crate::elf::Arch;

/// A rule in words, with the register names of its machine:
/// `cfa=rsp+16  rbp=[cfa-16]  ra=[cfa-8]`.
#[derive(Clone, Copy, Debug)]
pub struct InWords {
    /// What to print.
    pub rule: Rule,
    /// Whose registers.
    pub arch: Arch,
}

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, arch } = *self;
        let base = Register(rule.base(), arch);
        match rule.kind() {
            Kind::NoInfo => return f.write_str("no information"),
            Kind::FramePointer => return f.write_str("frame pointer"),
            Kind::SignalFrame => return f.write_str("signal frame"),
            Kind::EndOfStack => return f.write_str("end of stack"),
            Kind::Unsupported => return f.write_str("unsupported"),
            Kind::Plt => {
                let from = rule.offset();
                return write!(f, "cfa=rsp+8 (+8 from byte {from} of 16)  ra=[cfa-8]");
            }
            Kind::Cfa => write!(f, "cfa={base}{}", Offset(rule.offset()))?,
            Kind::CfaDeref => {
                let addend = Offset(rule.return_address_offset());
                write!(f, "cfa=[{base}{}]{addend}", Offset(rule.offset()))?;
            }
        }
        let frame_pointer = Register(arch.frame_pointer(), arch);
        let offset = Offset(rule.frame_pointer_offset());
        if rule.frame_pointer_is_at_itself() {
            write!(f, "  {frame_pointer}=[{frame_pointer}{offset}]")?;
        } else if offset.0 != 0 {
            write!(f, "  {frame_pointer}=[cfa{offset}]")?;
        }
        match rule.return_address_offset() {
            _ if rule.kind() == Kind::CfaDeref => f.write_str("  ra=[cfa-8]"),
            0 => f.write_str("  ra=lr"),
            offset => write!(f, "  ra=[cfa{}]", Offset(offset)),
        }
    }
}

impl Arch {
    fn frame_pointer(self) -> u64 {
        match self {
            Self::X86_64 => X86_64::FP,
            Self::Aarch64 => Aarch64::FP,
        }
    }
}

/// A register by its DWARF number.
struct Register(u64, Arch);

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const X86_64: [&str; 16] = [
            "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15",
        ];
        let Self(number, arch) = *self;
        match arch {
            Arch::X86_64 => match usize::try_from(number).ok().and_then(|at| X86_64.get(at)) {
                Some(name) => f.write_str(name),
                None => write!(f, "r{number}?"),
            },
            Arch::Aarch64 if number == Aarch64::SP => f.write_str("sp"),
            Arch::Aarch64 => write!(f, "x{number}"),
        }
    }
}

/// `+8`, `-8`, or nothing.
struct Offset(i64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "{:+}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use everflame_agent_common::unwind::{FrameRule, ReturnAddress, SavedFramePointer};

    use super::*;

    fn check(rule: Rule, arch: Arch, expected: &str) {
        assert_eq!(InWords { rule, arch }.to_string(), expected);
    }

    fn cfa(base: u16, offset: i64, fp: SavedFramePointer, ra: ReturnAddress) -> Rule {
        let rule = FrameRule { base, offset, frame_pointer: fp, return_address: ra };
        Rule::cfa(rule).unwrap()
    }

    #[test]
    fn rules_read_like_debuggers_write_them() {
        use ReturnAddress as Ra;
        use SavedFramePointer as Fp;
        let x86 = Arch::X86_64;
        let rule = cfa(7, 16, Fp::AtCfa(-16), Ra::AtCfa(-8));
        check(rule, x86, "cfa=rsp+16  rbp=[cfa-16]  ra=[cfa-8]");
        check(cfa(10, 0, Fp::Unchanged, Ra::AtCfa(-8)), x86, "cfa=r10  ra=[cfa-8]");
        let rule = Rule::cfa_deref(6, -8, 0, Fp::AtFramePointer(0)).unwrap();
        check(rule, x86, "cfa=[rbp-8]  rbp=[rbp]  ra=[cfa-8]");
        let rule = Rule::cfa_deref(7, 40, 8, Fp::AtCfa(-16)).unwrap();
        check(rule, x86, "cfa=[rsp+40]+8  rbp=[cfa-16]  ra=[cfa-8]");
        let rule = Rule::plt(11).unwrap();
        check(rule, x86, "cfa=rsp+8 (+8 from byte 11 of 16)  ra=[cfa-8]");
        check(Rule::NO_INFO, x86, "no information");

        let arm = Arch::Aarch64;
        check(cfa(31, 0, Fp::Unchanged, Ra::InLinkRegister), arm, "cfa=sp  ra=lr");
        let rule = cfa(29, 32, Fp::AtCfa(-32), Ra::AtCfa(-24));
        check(rule, arm, "cfa=x29+32  x29=[cfa-32]  ra=[cfa-24]");
    }
}
