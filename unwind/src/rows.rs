//! Runs the programs of functions and fills the gaps between them.

use everflame_agent_common::unwind::Rule;

use crate::elf::{Arch, Elf};
use crate::entries::{Budget, Entry, Reader};
use crate::error::CompileError;
use crate::extents::Extent;
use crate::limits::Limits;
use crate::linkage::{self, Piece};
use crate::pages::Builder;
use crate::program::{Effect, Machine, Malformed};
use crate::rules::{Cause, Context};
use crate::stats::TableStats;

/// Gaps from this on are code that somebody generated without call frame information, such
/// as V8's builtins, and that keeps frame pointers.
const MIN_FRAME_POINTER_CODE: u32 = 64 << 10;

/// Bytes of code at the entry point; the longest known are those of glibc's dynamic linker.
const MAX_ENTRY_POINT: u64 = 128;

/// Turns functions, in order of file offset, into rows.
#[derive(Debug)]
pub(crate) struct Rows {
    arch: Arch,
    /// All code outside functions keeps frame pointers: Go, or a file that says nothing.
    keeps_frame_pointers: bool,
    /// Linkage tables, and the entry point.
    pieces: Vec<Piece>,
    machine: Machine,
    pub(crate) builder: Builder,
}

/// `_start`, where no function describes it, as in glibc's dynamic linker (whose code goes on
/// at `_dl_start_user` behind it) and in musl: nothing has called it.
fn entry_point(elf: &Elf<'_>, others: &[Piece]) -> Option<Piece> {
    let (start, end) = elf
        .code
        .offsets(elf.entry, elf.entry.checked_add(MAX_ENTRY_POINT).filter(|_| elf.entry != 0)?)?;
    let next = others.iter().map(|piece| piece.start).filter(|other| *other > start).min();
    let is_apart = !others.iter().any(|piece| (piece.start..piece.end).contains(&start));
    let end = next.map_or(end, |next| end.min(next));
    is_apart.then_some(Piece { start, end, rule: Rule::END_OF_STACK })
}

impl Rows {
    pub(crate) fn new(elf: &Elf<'_>, keeps_frame_pointers: bool, builder: Builder) -> Self {
        let machine = Machine::new(elf.arch.columns());
        let mut pieces = linkage::pieces(elf);
        if !keeps_frame_pointers {
            pieces.extend(entry_point(elf, &pieces));
            pieces.sort_by_key(|piece| piece.start);
        }
        Self { arch: elf.arch, keeps_frame_pointers, pieces, machine, builder }
    }

    /// The code from `start` to `end` belongs to no function. Even alignment is said to be
    /// nobody's: the byte before a function is where a walk looks when the function's start is
    /// a return address, as that of a coroutine's first function is.
    pub(crate) fn gap(&mut self, start: u32, end: u32) {
        let size = end - start;
        if size == 0 {
            return;
        }
        let rule = if self.keeps_frame_pointers || size >= MIN_FRAME_POINTER_CODE {
            Rule::FRAME_POINTER
        } else {
            Rule::NO_INFO
        };
        self.builder.push(start, rule);
        let first = self.pieces.partition_point(|piece| piece.end <= start);
        let within = self.pieces.get(first..).unwrap_or_default();
        for piece in within.iter().take_while(|piece| piece.start < end) {
            self.builder.push(piece.start.max(start), piece.rule);
            if piece.end < end {
                self.builder.push(piece.end, rule);
            }
        }
    }

    /// Runs the program of one function.
    pub(crate) fn function(
        &mut self,
        reader: &mut Reader<'_>,
        extent: Extent,
        limits: &Limits,
        budget: &mut Budget,
        stats: &mut TableStats,
    ) -> Result<(), CompileError> {
        // It has been read before, and lies in memory.
        let Entry::Function(function) = reader.entry(extent.entry as usize, budget)? else {
            return Ok(());
        };
        let context = Context {
            arch: self.arch,
            encoding: function.fde.cie().encoding(),
            section: reader.bytes(),
            is_signal_frame: function.fde.is_signal_trampoline(),
            return_address: function.fde.cie().return_address_register().0,
        };
        let first_svma = function.fde.initial_address();
        let end_svma = first_svma + u64::from(extent.end - extent.start);
        let mut svma = first_svma;
        let mut rule = Err(Cause::Malformed);
        let mut is_changed = true;
        let mut has_rule = false;
        let mut executed = 0;
        self.machine.begin(function.start);
        let mut instructions = reader.instructions(&function);
        while svma < end_svma {
            let effect = match instructions.next() {
                Ok(Some(instruction)) => self.machine.execute(svma, &instruction),
                Ok(None) => Ok(Effect::Advanced(end_svma)),
                Err(_) => Err(Malformed),
            };
            executed += 1;
            let next = match effect {
                Ok(Effect::None) => continue,
                Ok(Effect::Changed) => {
                    is_changed = true;
                    continue;
                }
                Ok(Effect::Advanced(next)) if next == svma => continue,
                Ok(Effect::Advanced(next)) => {
                    if is_changed {
                        rule = context.rule(&self.machine.state);
                        is_changed = false;
                    }
                    next
                }
                Err(Malformed) => {
                    rule = Err(Cause::Malformed);
                    end_svma
                }
            };
            stats.rows_read += 1;
            match rule {
                Ok(_) => has_rule = true,
                Err(cause) => stats.unsupported[cause as usize] += 1,
            }
            // Fits: within the extent, see above.
            let offset = extent.start + (svma - first_svma) as u32;
            self.builder.push(offset, rule.unwrap_or(Rule::UNSUPPORTED));
            svma = next;
        }
        stats.functions_without_rule += u64::from(!has_rule);
        budget.spend(executed)?;
        if stats.rows_read > u64::from(limits.rows) {
            let (found, limit) = (stats.rows_read, u64::from(limits.rows));
            return Err(CompileError::TooLarge { what: "rows", found, limit });
        }
        Ok(())
    }
}
