//! Finishes a stack whose walk in the kernel met a file without a table.
//!
//! The sample brought registers and a copy of the stack. With the mappings as they were at
//! that time, the same step goes on over the same pages that the BPF programs read.

use std::sync::Arc;

use everflame_agent_common::limits::MAX_USER_FRAMES;
use everflame_agent_common::unwind::{Kind, Memory, PlainSign, Registers, Stop, step};

use super::compiler::Compiler;
use super::tables::{Lookup, Tables};
use crate::process::Mappings;

#[cfg(target_arch = "aarch64")]
type Native = everflame_agent_common::unwind::Aarch64;
#[cfg(not(target_arch = "aarch64"))]
type Native = everflame_agent_common::unwind::X86_64;

/// A stack that is to be finished.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The asker's own number for it.
    pub id: u64,
    /// What was mapped at the time of the sample.
    pub mappings: Arc<Mappings>,
    /// Addresses so far, leaf first; the last is that of `registers`.
    pub frames: Vec<u64>,
    /// Of the frame that the walk got to.
    pub registers: Registers,
    /// Where `stack` was copied from: somewhat below the stack pointer of the frame that the
    /// walk in the kernel got to.
    pub stack_start: u64,
    /// The copy.
    pub stack: Box<[u8]>,
}

/// A stack that was finished.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The number that it was asked for by.
    pub id: u64,
    /// All addresses, leaf first.
    pub frames: Vec<u64>,
    /// Why it ends where it does.
    pub stop: Stop,
}

/// Whether a stack is finished.
pub(super) enum Progress {
    /// It is.
    Done(Finished),
    /// A table is on its way.
    Waiting(Box<Unfinished>),
}

/// Takes what steps are possible now.
pub(super) fn go_on(
    mut stack: Box<Unfinished>,
    tables: &mut Tables,
    compiler: &Compiler,
) -> Progress {
    let mut memory = Copy { start: stack.stack_start, bytes: &stack.stack };
    let stop = loop {
        let address = stack.registers.lookup_address();
        let Some(mapping) = stack.mappings.find(address) else { break Stop::Unmapped };
        let rule = match tables.look_up(mapping, address, compiler) {
            Lookup::Rule(rule) => rule,
            Lookup::Stop(stop) => break stop,
            Lookup::Wait => return Progress::Waiting(stack),
        };
        if rule.kind() == Kind::SignalFrame
            && let Some(last) = stack.frames.last_mut()
        {
            *last = stack.registers.ip.wrapping_add(1);
        }
        if let Err(stop) = step::<Native, PlainSign>(rule, &mut stack.registers, &mut memory) {
            break stop;
        }
        if stack.frames.len() >= MAX_USER_FRAMES {
            break Stop::DepthLimit;
        }
        // As the BPF programs do: all but the leaf are one more than an address within.
        stack.frames.push(stack.registers.ip.wrapping_add(stack.registers.interrupted));
    };
    Progress::Done(Finished { id: stack.id, frames: stack.frames, stop })
}

/// A copy of memory.
struct Copy<'a> {
    start: u64,
    bytes: &'a [u8],
}

impl Memory for Copy<'_> {
    fn read(&mut self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        Some(u64::from_ne_bytes(*self.bytes.get(at..)?.first_chunk()?))
    }
}
