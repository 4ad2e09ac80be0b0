//! Where in a function a probe costs least.
//!
//! The kernel puts a trap in the place of an instruction and does that instruction's work itself where it can:
//! pushes, jumps and calls on x86-64 (arch/x86/kernel/uprobes.c), at 0.6 us a time. Others it executes out of line, step
//! by step, which is 11 to 15 us. Functions rarely begin with an instruction of the worse kind only, so the probe is put
//! some bytes further in: where each call comes by once, the arguments are still in their registers, and the
//! stack can be walked.
//!
//! A no-operation of five bytes is never taken: Linux 6.18 replaces it by a call into a page that children of
//! fork do not have, and they die of it. Whatever follows is better, even if it is single-stepped; a function with nothing
//! else is not probed.
//!
//! The same look at the code tells which functions end by jumping to another (a tail call): that one's caller seems to
//! be this one's.

use std::collections::HashSet;

use super::Placement;
use everflame_agent_common::allocation::SizeArgument;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, Register,
};

/// Instructions that are looked at: an allocator's longest function has some hundred.
const MAX_INSTRUCTIONS: usize = 4096;

/// How far into a function a probe may be.
const MAX_DISTANCE: u64 = 48;

/// Chooses a place in the function at `start`, of `size` bytes. `code` is a part of the file from `code_start`
/// on, with all that the function may jump to.
pub(super) fn choose(
    code: &[u8],
    code_start: u64,
    (start, size): (u64, u64),
    argument: SizeArgument,
) -> Placement {
    let reached = reach(code, code_start, start);
    let jumps_to =
        reached.targets.iter().copied().filter(|at| !(start..start + size).contains(at)).collect();
    let arguments = registers(argument);
    let mut factory = InstructionInfoFactory::new();
    let mut at = start;
    let first = decode(code, code_start, start);
    let mut place = Placement {
        distance: 0,
        instruction: first.map_or_else(|| "?".to_owned(), |first| name(&first)),
        is_cheap: false,
        is_harmful: false,
        jumps_to,
    };
    let mut is_at_nop = first.is_some_and(|first| is_nop_of_five(&first));
    while at - start < MAX_DISTANCE.min(size) {
        let Some(instruction) = decode(code, code_start, at) else { break };
        // Nobody comes by this place twice.
        if at != start && reached.targets.contains(&at) {
            break;
        }
        if is_at_nop && !is_nop_of_five(&instruction) {
            place.distance = at - start;
            place.instruction = name(&instruction);
            is_at_nop = false;
        }
        // Go tries again from the start when it has made the stack larger, so a jump there is no loop. But
        // then the jump that decides is met twice: it is taken only if nothing better follows.
        let is_stack_check = argument == SizeArgument::FirstOfGo
            && instruction.flow_control() == FlowControl::ConditionalBranch;
        if is_cheap(&instruction) {
            place.distance = at - start;
            place.instruction = name(&instruction);
            place.is_cheap = true;
            if !is_stack_check {
                break;
            }
        }
        let goes_on = instruction.flow_control() == FlowControl::Next || is_stack_check;
        let overwrites = factory.info(&instruction).used_registers().iter().any(|used| {
            let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            writes && arguments.contains(&used.register().full_register())
        });
        if !goes_on || overwrites {
            break;
        }
        at = instruction.next_ip();
    }
    place.is_harmful = is_at_nop;
    place
}

/// Which registers a program reads.
fn registers(argument: SizeArgument) -> &'static [Register] {
    match argument {
        SizeArgument::FirstOfGo => &[Register::RAX],
        _ => &[Register::RDI, Register::RSI, Register::RDX],
    }
}

/// What the kernel emulates on all versions: `push` of a general register, jumps and calls to fixed places.
/// Not those with 16-bit operands.
fn is_cheap(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Push_r64) && instruction.len() <= 2
        || matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
        ) && is_near(instruction)
            && !matches!(
                instruction.mnemonic(),
                Mnemonic::Jrcxz
                    | Mnemonic::Jecxz
                    | Mnemonic::Jcxz
                    | Mnemonic::Loop
                    | Mnemonic::Loope
                    | Mnemonic::Loopne
            )
}

fn is_nop_of_five(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Nop && instruction.len() == 5
}

fn is_near(instruction: &Instruction) -> bool {
    instruction.is_jcc_short_or_near()
        || instruction.is_jmp_short_or_near()
        || instruction.is_call_near()
}

fn name(instruction: &Instruction) -> String {
    format!("{:?}", instruction.mnemonic()).to_lowercase()
}

struct Reached {
    /// Where jumps lead.
    targets: HashSet<u64>,
}

/// Follows all jumps from a function's start, as far as they lead through `code`.
fn reach(code: &[u8], code_start: u64, start: u64) -> Reached {
    let mut targets = HashSet::new();
    let mut seen = HashSet::new();
    let mut waiting = vec![start];
    while let Some(mut at) = waiting.pop() {
        while seen.len() < MAX_INSTRUCTIONS && seen.insert(at) {
            let Some(instruction) = decode(code, code_start, at) else { break };
            if is_near(&instruction) && !instruction.is_call_near() {
                let target = instruction.near_branch_target();
                targets.insert(target);
                waiting.push(target);
            }
            match instruction.flow_control() {
                FlowControl::Next
                | FlowControl::ConditionalBranch
                | FlowControl::Call
                | FlowControl::IndirectCall => at = instruction.next_ip(),
                _ => break,
            }
        }
    }
    Reached { targets }
}

fn decode(code: &[u8], code_start: u64, at: u64) -> Option<Instruction> {
    let from = usize::try_from(at.checked_sub(code_start)?).ok()?;
    let bytes = code.get(from..).filter(|bytes| !bytes.is_empty())?;
    let instruction = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x1000;

    #[track_caller]
    fn check(code: &[u8], argument: SizeArgument, distance: u64, instruction: &str, cheap: bool) {
        let placement = choose(code, START, (START, code.len() as u64), argument);
        assert_eq!(
            (placement.distance, placement.instruction.as_str(), placement.is_cheap),
            (distance, instruction, cheap)
        );
    }

    #[test]
    fn first_instruction_is_taken_where_it_is_emulated() {
        // push r12; push rbp; ret
        check(b"\x41\x54\x55\xc3", SizeArgument::First, 0, "push", true);
    }

    #[test]
    fn others_are_passed_over_while_arguments_are_there() {
        // endbr64; cmp byte [rip+0], 0; push rbx; ret
        let code = b"\xf3\x0f\x1e\xfa\x80\x3d\x00\x00\x00\x00\x00\x53\xc3";
        check(code, SizeArgument::First, 11, "push", true);
        // test rdi, rdi; je; ret
        check(b"\x48\x85\xff\x74\x00\xc3", SizeArgument::First, 3, "je", true);
        // nop of five bytes; push rbx; ret
        check(b"\x0f\x1f\x44\x00\x00\x53\xc3", SizeArgument::First, 5, "push", true);
        // nop of five bytes; mov rax, rsi; xor edi, edi; push rbx; ret
        let code = b"\x0f\x1f\x44\x00\x00\x48\x89\xf0\x31\xff\x53\xc3";
        check(code, SizeArgument::First, 5, "mov", false);
        // mov rax, rsi; xor edi, edi; push rbx; ret
        check(b"\x48\x89\xf0\x31\xff\x53\xc3", SizeArgument::First, 0, "mov", false);
    }

    #[test]
    fn function_with_nothing_but_a_harmful_place_is_known() {
        // nop of five bytes; 1: push rbx; pop rbx; jmp 1b
        for (code, size) in
            [(&b"\x0f\x1f\x44\x00\x00\x53\x5b\xeb\xfc"[..], 9), (b"\x0f\x1f\x44\x00\x00", 5)]
        {
            assert!(
                choose(code, START, (START, size), SizeArgument::First).is_harmful,
                "{code:x?}"
            );
        }
        assert!(!choose(b"\x53\xc3", START, (START, 2), SizeArgument::First).is_harmful);
    }

    #[test]
    fn place_that_is_come_to_by_a_jump_is_not_taken() {
        // mov rbx, rdi; 1: push rbx; pop rbx; jmp 1b
        check(b"\x48\x89\xfb\x53\x5b\xeb\xfc", SizeArgument::First, 0, "mov", false);
    }

    #[test]
    fn go_is_probed_behind_its_check_of_the_stack() {
        // cmp rsp, [r14+16]; jbe 1f; push rbp; mov rbp, rsp; ret; 1: call +0; jmp start
        let code = b"\x49\x3b\x66\x10\x76\x05\x55\x48\x89\xe5\xc3\xe8\x00\x00\x00\x00\xeb\xee";
        check(code, SizeArgument::FirstOfGo, 6, "push", true);
    }

    #[test]
    fn tail_calls_are_found_by_way_of_others() {
        // start: jmp 1f; ret; ret; 1: push rbx; pop rbx; jmp 2f; ret; 2: ret
        let code = b"\xeb\x02\xc3\xc3\x53\x5b\xeb\x01\xc3\xc3";
        let placement = choose(code, START, (START, 4), SizeArgument::Second);
        assert!(placement.jumps_to.contains(&(START + 4)));
        assert!(placement.jumps_to.contains(&(START + 9)));
    }
}
