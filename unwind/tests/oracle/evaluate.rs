//! The caller's registers as gimli has them: its row, its expressions, a made-up machine.

use everflame_agent_common::unwind::{Memory, Registers};
use everflame_unwind::Arch;
use gimli::{
    CfaRule, EhFrame, EndianSlice, EvaluationResult, Expression, LittleEndian, Register,
    RegisterRule, UnwindExpression, UnwindTableRow, Value,
};

pub(crate) type Bytes<'a> = EndianSlice<'a, LittleEndian>;
pub(crate) type Row = UnwindTableRow<usize>;

/// Memory that holds something else at each address: plausible stack addresses, all of them
/// above the registers, so that frames rise whatever is read.
pub(crate) struct MadeUp;

impl MadeUp {
    pub(crate) fn word(address: u64) -> u64 {
        let hash = (address ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        1 << 45 | (hash & 0xfff_ffff_fff8)
    }
}

impl Memory for MadeUp {
    fn read(&mut self, address: u64) -> Option<u64> {
        Some(Self::word(address))
    }
}

/// Different values in all registers, the stack pointer lowest.
pub(crate) fn registers(ip: u64, arch: Arch, random: &mut fastrand::Rng) -> Registers {
    let mut general = [0; 32];
    for (number, value) in general.iter_mut().enumerate() {
        *value = (0x200 + number as u64) << 32 | random.u64(..1 << 29) << 3;
    }
    let sp = 1 << 40 | random.u64(..1 << 29) << 3;
    let fp = 1 << 41 | random.u64(..1 << 29) << 3;
    let (sp_number, fp_number) = numbers(arch);
    general[sp_number] = sp;
    general[fp_number] = fp;
    Registers { ip, sp, fp, interrupted: 1, general }
}

fn numbers(arch: Arch) -> (usize, usize) {
    match arch {
        Arch::X86_64 => (7, 6),
        Arch::Aarch64 => (31, 29),
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// (ip, sp, fp) of the caller.
    Found(u64, u64, u64),
    /// The return address is undefined.
    None,
}

pub(crate) struct Evaluator<'a> {
    pub(crate) arch: Arch,
    pub(crate) section: &'a EhFrame<Bytes<'a>>,
    pub(crate) encoding: gimli::Encoding,
}

impl<'a> Evaluator<'a> {
    /// `None`: gimli cannot say either.
    pub(crate) fn caller(&self, row: &Row, regs: &Registers) -> Option<Caller> {
        let (sp_number, fp_number) = numbers(self.arch);
        let ra_number = match self.arch {
            Arch::X86_64 => 16,
            Arch::Aarch64 => 30,
        };
        if row.register(Register(ra_number)) == Some(RegisterRule::Undefined) {
            return Some(Caller::None);
        }
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                regs.general.get(usize::from(register.0))?.wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => self.expression(expression, None, regs)?,
        };
        let unchanged = |number: usize| regs.general[number];
        let restored = |number: u16, default: u64| match row.register(Register(number)) {
            None => Some(default),
            Some(rule) => self.register(&rule, number, cfa, regs),
        };
        let sp = restored(sp_number as u16, cfa)?;
        let fp = restored(fp_number as u16, unchanged(fp_number))?;
        let ip = match self.arch {
            Arch::X86_64 => self.register(&row.register(Register(16))?, 16, cfa, regs)?,
            Arch::Aarch64 => restored(30, unchanged(30))? & ((1 << 48) - 1),
        };
        Some(Caller::Found(ip, sp, fp))
    }

    fn register(
        &self,
        rule: &RegisterRule<usize>,
        number: u16,
        cfa: u64,
        regs: &Registers,
    ) -> Option<u64> {
        Some(match rule {
            // What is undefined may have any value, also the one it had.
            RegisterRule::SameValue | RegisterRule::Undefined => {
                *regs.general.get(usize::from(number))?
            }
            RegisterRule::Offset(offset) => MadeUp::word(cfa.wrapping_add_signed(*offset)),
            RegisterRule::ValOffset(offset) => cfa.wrapping_add_signed(*offset),
            RegisterRule::Register(other) => *regs.general.get(usize::from(other.0))?,
            RegisterRule::Expression(expression) => {
                MadeUp::word(self.expression(expression, Some(cfa), regs)?)
            }
            RegisterRule::ValExpression(expression) => {
                self.expression(expression, Some(cfa), regs)?
            }
            _ => return None,
        })
    }

    fn expression(
        &self,
        expression: &UnwindExpression<usize>,
        initial: Option<u64>,
        regs: &Registers,
    ) -> Option<u64> {
        let expression: Expression<Bytes<'a>> = expression.get(self.section).ok()?;
        let mut evaluation = expression.evaluation(self.encoding);
        evaluation.set_max_iterations(1000);
        if let Some(initial) = initial {
            evaluation.set_initial_value(initial);
        }
        let mut result = evaluation.evaluate().ok()?;
        loop {
            result = match result {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size: 8, space: None, .. } => {
                    evaluation.resume_with_memory(Value::Generic(MadeUp::word(address)))
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    let is_ip = self.arch == Arch::X86_64 && register.0 == 16;
                    let value = match regs.general.get(usize::from(register.0)) {
                        _ if is_ip => regs.ip,
                        Some(value) => *value,
                        None => return None,
                    };
                    evaluation.resume_with_register(Value::Generic(value))
                }
                _ => return None,
            }
            .ok()?;
        }
        match evaluation.value_result()? {
            Value::Generic(value) => Some(value),
            _ => None,
        }
    }
}
