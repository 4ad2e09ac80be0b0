//! Any page of rules, any registers and any stack: walks end, and only ever go up.
#![no_main]

use everflame_agent_common::unwind::page::{Page, WORDS, find_rule};
use everflame_agent_common::unwind::{
    Aarch64, Architecture, Kind, Memory, PlainSign, Registers, X86_64, step,
};
use libfuzzer_sys::fuzz_target;

const STACK: u64 = 0x7fff_0000;
const CODE: u64 = 0x40_0000;
const MAX_FRAMES: usize = 300;

struct Stack<'a>(&'a [u64]);

impl Memory for Stack<'_> {
    fn read(&mut self, address: u64) -> Option<u64> {
        assert!(address.is_multiple_of(8), "readers may rely on it: {address:#x}");
        let at = usize::try_from(address.checked_sub(STACK)? / 8).ok()?;
        self.0.get(at).copied()
    }
}

fuzz_target!(|bytes: &[u8]| {
    let words = bytes.chunks_exact(8).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_le_bytes(bytes)
    });
    let mut words: Vec<u64> = words.collect();
    // What is missing is zero.
    words.resize(words.len().max(WORDS + 36), 0);
    let (page, rest) = words.split_at(WORDS);
    let (registers, stack) = rest.split_at(36);
    let (Ok(page), Ok(general)) = (page.try_into(), registers[4..].try_into()) else { return };
    let registers = Registers {
        ip: registers[0],
        // Mostly where the stack is.
        sp: STACK.wrapping_add(registers[1]),
        fp: registers[2],
        interrupted: registers[3],
        general,
    };
    walk::<X86_64>(page, registers, stack);
    walk::<Aarch64>(page, registers, stack);
});

fn walk<A: Architecture>(page: &Page, mut registers: Registers, stack: &[u64]) {
    for _ in 0..MAX_FRAMES {
        let rule = find_rule::<PlainSign>(page, registers.lookup_address().wrapping_sub(CODE));
        let before = registers;
        if step::<A, PlainSign>(rule, &mut registers, &mut Stack(stack)).is_err() {
            return;
        }
        // Signal handlers can have a stack of their own.
        if rule.kind() == Kind::SignalFrame {
            continue;
        }
        let leaf_without_frame = before.interrupted != 0 && registers.sp == before.sp;
        assert!(registers.sp > before.sp || leaf_without_frame, "{before:x?} {rule:?}");
    }
}
