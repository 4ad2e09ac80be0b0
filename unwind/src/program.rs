//! Runs call frame programs (DWARF 5, section 6.4.2), following only what a stack walk
//! needs: the CFA, the stack and frame pointers and the return address.
//!
//! gimli's own table keeps all registers of each row; leaving out the ones that nobody
//! asks for makes this several times faster, and gimli's table an independent oracle for
//! the tests.

use gimli::{CallFrameInstruction, UnwindExpression};

/// Nesting of DW_CFA_remember_state; compilers use one level, hand-written code two.
const MAX_REMEMBERED: usize = 16;

/// How the CFA is found: by the expression, if there is one, else as `register + offset`.
///
/// Those two outlive the expression, as they do in libgcc and unlike in gimli, for which
/// DW_CFA_def_cfa_register after an expression is an error: libgcrypt ends functions so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cfa {
    pub(crate) register: u16,
    pub(crate) offset: i64,
    pub(crate) expression: Option<UnwindExpression<usize>>,
}

/// Where the caller's value of a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saved {
    Unspecified,
    Undefined,
    SameValue,
    AtCfa(i64),
    /// At the address that an expression computes.
    At(UnwindExpression<usize>),
    /// In another register, or a computed value.
    Elsewhere,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) cfa: Cfa,
    pub(crate) stack_pointer: Saved,
    pub(crate) frame_pointer: Saved,
    pub(crate) return_address: Saved,
}

impl State {
    const EMPTY: Self = Self {
        cfa: Cfa { register: 0, offset: 0, expression: None },
        stack_pointer: Saved::Unspecified,
        frame_pointer: Saved::Unspecified,
        return_address: Saved::Unspecified,
    };
}

/// DWARF numbers of the registers that are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    pub(crate) stack_pointer: u16,
    pub(crate) frame_pointer: u16,
    pub(crate) return_address: u16,
}

/// What a program starts with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) code_alignment: u64,
    pub(crate) data_alignment: i64,
    pub(crate) state: State,
}

/// The program does what no program may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What the instruction that was executed has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing that is followed.
    None,
    /// The state may have changed.
    Changed,
    /// The rows that follow begin at this address.
    Advanced(u64),
}

/// Executes the programs of one function after the other.
#[derive(Debug)]
pub(crate) struct Machine {
    columns: Columns,
    start: Start,
    pub(crate) state: State,
    remembered: Vec<State>,
}

impl Machine {
    pub(crate) fn new(columns: Columns) -> Self {
        let remembered = Vec::with_capacity(MAX_REMEMBERED);
        Self { columns, start: Start::new(1, 1), state: State::EMPTY, remembered }
    }

    /// Begins with another program.
    pub(crate) fn begin(&mut self, start: Start) {
        self.start = start;
        self.state = start.state;
        self.remembered.clear();
    }

    /// `location` is the address that the present row begins at.
    #[inline]
    pub(crate) fn execute(
        &mut self,
        location: u64,
        instruction: &CallFrameInstruction<usize>,
    ) -> Result<Effect, Malformed> {
        use CallFrameInstruction as I;
        let state = &mut self.state;
        match *instruction {
            I::SetLoc { address } if address < location => return Err(Malformed),
            I::SetLoc { address } => return Ok(Effect::Advanced(address)),
            I::AdvanceLoc { delta } => {
                let bytes = self.start.code_alignment.checked_mul(u64::from(delta));
                let next = bytes.and_then(|bytes| location.checked_add(bytes));
                return next.map(Effect::Advanced).ok_or(Malformed);
            }
            I::DefCfa { register, offset } => {
                let (register, offset) = (register.0, offset as i64);
                state.cfa = Cfa { register, offset, expression: None };
            }
            I::DefCfaSf { register, factored_offset } => {
                let (register, offset) = (register.0, self.start.scaled(factored_offset));
                state.cfa = Cfa { register, offset, expression: None };
            }
            I::DefCfaRegister { register } => {
                state.cfa.register = register.0;
                state.cfa.expression = None;
            }
            I::DefCfaOffset { offset } => state.cfa.offset = offset as i64,
            I::DefCfaOffsetSf { factored_offset } => {
                state.cfa.offset = self.start.scaled(factored_offset);
            }
            I::DefCfaExpression { expression } => state.cfa.expression = Some(expression),
            I::Undefined { register } => return Ok(self.save(register, Saved::Undefined)),
            I::SameValue { register } => return Ok(self.save(register, Saved::SameValue)),
            I::Offset { register, factored_offset } => {
                let offset = self.start.scaled(factored_offset as i64);
                return Ok(self.save(register, Saved::AtCfa(offset)));
            }
            I::OffsetExtendedSf { register, factored_offset } => {
                let offset = self.start.scaled(factored_offset);
                return Ok(self.save(register, Saved::AtCfa(offset)));
            }
            I::Expression { register, expression } => {
                return Ok(self.save(register, Saved::At(expression)));
            }
            I::Register { dest_register: register, .. }
            | I::ValOffset { register, .. }
            | I::ValOffsetSf { register, .. }
            | I::ValExpression { register, .. } => {
                return Ok(self.save(register, Saved::Elsewhere));
            }
            I::Restore { register } if register.0 == self.columns.frame_pointer => {
                state.frame_pointer = self.start.state.frame_pointer;
            }
            I::Restore { register } if register.0 == self.columns.return_address => {
                state.return_address = self.start.state.return_address;
            }
            I::Restore { register } if register.0 == self.columns.stack_pointer => {
                state.stack_pointer = self.start.state.stack_pointer;
            }
            I::Restore { .. } => return Ok(Effect::None),
            I::RememberState if self.remembered.len() == MAX_REMEMBERED => return Err(Malformed),
            I::RememberState => {
                self.remembered.push(self.state);
                return Ok(Effect::None);
            }
            I::RestoreState => self.state = self.remembered.pop().ok_or(Malformed)?,
            // Signatures of return addresses are stripped, signed or not.
            I::NegateRaState | I::ArgsSize { .. } | I::Nop => return Ok(Effect::None),
        }
        Ok(Effect::Changed)
    }

    fn save(&mut self, register: gimli::Register, how: Saved) -> Effect {
        match self.tracked(register) {
            Some(saved) => {
                *saved = how;
                Effect::Changed
            }
            None => Effect::None,
        }
    }

    fn tracked(&mut self, register: gimli::Register) -> Option<&mut Saved> {
        if register.0 == self.columns.frame_pointer {
            Some(&mut self.state.frame_pointer)
        } else if register.0 == self.columns.return_address {
            Some(&mut self.state.return_address)
        } else if register.0 == self.columns.stack_pointer {
            Some(&mut self.state.stack_pointer)
        } else {
            None
        }
    }
}

impl Start {
    /// What the program of a CIE starts with.
    pub(crate) fn new(code_alignment: u64, data_alignment: i64) -> Self {
        Self { code_alignment, data_alignment, state: State::EMPTY }
    }

    /// Wraps, as it does for gimli and for libgcc.
    fn scaled(&self, factored_offset: i64) -> i64 {
        factored_offset.wrapping_mul(self.data_alignment)
    }
}
