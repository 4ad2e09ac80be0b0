//! Rules for procedure linkage tables that no function describes.
//!
//! GNU's linker describes those of x86_64; LLVM's, and all linkers for aarch64, leave them
//! out. What they are made of is fixed by each machine's ABI.

use everflame_agent_common::unwind::{FrameRule, ReturnAddress, Rule, SavedFramePointer};

use crate::elf::{Arch, Elf, Section};

/// Linkage tables of one file; there are four kinds.
const MAX_TABLES: usize = 16;

/// Code with a rule of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First file offset.
    pub(crate) start: u32,
    /// File offset behind the last.
    pub(crate) end: u32,
    pub(crate) rule: Rule,
}

/// The linkage tables of a file, sorted, not overlapping.
pub(crate) fn pieces(elf: &Elf<'_>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let sections = elf.code_sections(".plt").chain(elf.code_sections(".iplt"));
    for section in sections.take(MAX_TABLES) {
        let end = section.address.saturating_add(section.size);
        if let Some((start, end)) = elf.code.offsets(section.address, end) {
            let rules = match elf.arch {
                Arch::X86_64 => x86_64(&head(elf, section)),
                Arch::Aarch64 => aarch64(&head(elf, section)),
            };
            append(&mut pieces, start, end, &rules);
        }
    }
    pieces.sort_by_key(|piece| piece.start);
    let mut covered = 0;
    pieces.retain(|piece| {
        let is_apart = piece.start >= covered;
        covered = covered.max(piece.end);
        is_apart
    });
    pieces
}

/// The first two entries.
fn head(elf: &Elf<'_>, section: Section) -> [u8; 32] {
    let mut bytes = [0; 32];
    // A table of one entry is shorter; then nothing of it is recognised.
    elf.read_start(section, &mut bytes);
    bytes
}

/// Rules by the offset in the section from which they are in force.
type Rules = Vec<(u32, Option<Rule>)>;

fn append(pieces: &mut Vec<Piece>, start: u32, end: u32, rules: &Rules) {
    let ends = rules.iter().skip(1).map(|(from, _)| start.saturating_add(*from));
    for ((from, rule), piece_end) in rules.iter().zip(ends.chain([end])) {
        let piece = (start.saturating_add(*from), piece_end.min(end));
        if let (true, Some(rule)) = (piece.0 < piece.1, *rule) {
            pieces.push(Piece { start: piece.0, end: piece.1, rule });
        }
    }
}

/// psABI, figure 5.2: `push GOT+8; jmp *GOT+16`, then entries of `jmp *slot; push n; jmp`.
/// With indirect branch tracking, entries begin with `endbr64`, and those that do the jump
/// (`.plt.sec`) push nothing.
fn x86_64(head: &[u8; 32]) -> Rules {
    const PUSH_SLOT: [u8; 2] = [0xff, 0x35];
    const JMP_SLOT: [u8; 2] = [0xff, 0x25];
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    const PUSH: u8 = 0x68;
    let (first, entry) = head.split_at(16);
    let pushed = |bytes: i64| x86_64_frame(8 + bytes);
    if !first.starts_with(&PUSH_SLOT) {
        return vec![(0, pushed(0))];
    }
    let entries = if entry.starts_with(&JMP_SLOT) && entry[6] == PUSH {
        Rule::plt(11)
    } else if entry.starts_with(&ENDBR64) && entry[4] == PUSH {
        Rule::plt(9)
    } else {
        pushed(0)
    };
    vec![(0, pushed(8)), (6, pushed(16)), (16, entries)]
}

fn x86_64_frame(offset: i64) -> Option<Rule> {
    Rule::cfa(FrameRule {
        base: 7,
        offset,
        frame_pointer: SavedFramePointer::Unchanged,
        return_address: ReturnAddress::AtCfa(-8),
    })
}

/// AAELF64, appendix A: `stp x16, x30, [sp, #-16]!` and a jump, then entries that only jump.
fn aarch64(head: &[u8; 32]) -> Rules {
    const PUSH: [u8; 4] = 0xa9bf_7bf0_u32.to_le_bytes();
    let frame = |offset, return_address| {
        let frame_pointer = SavedFramePointer::Unchanged;
        Rule::cfa(FrameRule { base: 31, offset, frame_pointer, return_address })
    };
    let leaf = frame(0, ReturnAddress::InLinkRegister);
    let pushed = frame(16, ReturnAddress::AtCfa(-8));
    // With branch target identification, `bti c` comes first.
    match head.chunks_exact(4).take(2).position(|word| word == PUSH) {
        Some(0) => vec![(0, leaf), (4, pushed), (32, leaf)],
        Some(_) => vec![(0, leaf), (8, pushed), (32, leaf)],
        None => vec![(0, leaf)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::display::InWords;

    fn check(arch: Arch, rules: &Rules, expected: &[(u32, &str)]) {
        let found: Vec<(u32, String)> = rules
            .iter()
            .map(|(from, rule)| (*from, InWords { rule: rule.unwrap(), arch }.to_string()))
            .collect();
        let expected: Vec<(u32, String)> =
            expected.iter().map(|(from, words)| (*from, (*words).to_owned())).collect();
        assert_eq!(found, expected);
    }

    fn bytes(parts: &[(usize, &[u8])]) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (at, part) in parts {
            bytes[*at..*at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    #[test]
    fn lazy_table_pushes_twice() {
        let head = bytes(&[(0, &[0xff, 0x35]), (16, &[0xff, 0x25]), (22, &[0x68])]);
        let expected = [
            (0, "cfa=rsp+16  ra=[cfa-8]"),
            (6, "cfa=rsp+24  ra=[cfa-8]"),
            (16, "cfa=rsp+8 (+8 from byte 11 of 16)  ra=[cfa-8]"),
        ];
        check(Arch::X86_64, &x86_64(&head), &expected);
    }

    #[test]
    fn table_of_jumps_pushes_nothing() {
        let head = bytes(&[(0, &[0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25])]);
        check(Arch::X86_64, &x86_64(&head), &[(0, "cfa=rsp+8  ra=[cfa-8]")]);
    }

    #[test]
    fn aarch64_table_keeps_the_link_register() {
        let push = 0xa9bf_7bf0_u32.to_le_bytes();
        let leaf = "cfa=sp  ra=lr";
        let pushed = "cfa=sp+16  ra=[cfa-8]";
        let expected = [(0, leaf), (4, pushed), (32, leaf)];
        check(Arch::Aarch64, &aarch64(&bytes(&[(0, &push)])), &expected);
        let expected = [(0, leaf), (8, pushed), (32, leaf)];
        check(Arch::Aarch64, &aarch64(&bytes(&[(4, &push)])), &expected);
    }

    #[test]
    fn pieces_end_with_their_section() {
        let rule = |offset| x86_64_frame(offset);
        let mut pieces = Vec::new();
        append(&mut pieces, 100, 110, &vec![(0, rule(16)), (6, rule(24)), (16, rule(8))]);
        let extents: Vec<_> = pieces.iter().map(|piece| (piece.start, piece.end)).collect();
        assert_eq!(extents, [(100, 106), (106, 110)]);
    }
}
