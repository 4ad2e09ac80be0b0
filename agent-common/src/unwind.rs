//! One step of a user stack walk, as a pure function of registers and memory.
//!
//! The BPF programs call this with a reader over `bpf_probe_read_user`, the tests with a
//! slice, so what the kernel runs is what is tested. Only frame pointers are followed.

/// Why a stack ends where it does. A truncated stack is a value, not an error.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The walk reached the outermost frame: its saved frame pointer or return address is 0.
    End = 0,
    /// There is no stack of this side: a kernel thread has no user stack, code that runs in
    /// user mode has no kernel stack.
    Absent = 1,
    /// More frames than fit; the leaf side was kept.
    DepthLimit = 2,
    /// The stack could not be read: not a frame pointer, or memory that is paged out.
    Unreadable = 3,
    /// The saved frame pointer does not lie above the current frame, so it is not one.
    BrokenChain = 4,
    /// The walker of the kernel failed.
    Failed = 5,
    /// Code of another word size than the kernel's (32-bit programs), which is not walked.
    Compat = 6,
}

impl Stop {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::End,
        Self::Absent,
        Self::DepthLimit,
        Self::Unreadable,
        Self::BrokenChain,
        Self::Failed,
        Self::Compat,
    ];

    /// The reason with this number; unknown numbers read as [`Stop::Failed`].
    pub const fn from_u8(stop: u8) -> Self {
        match stop {
            0 => Self::End,
            1 => Self::Absent,
            2 => Self::DepthLimit,
            3 => Self::Unreadable,
            4 => Self::BrokenChain,
            6 => Self::Compat,
            _ => Self::Failed,
        }
    }

    /// The name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Absent => "absent",
            Self::DepthLimit => "depth_limit",
            Self::Unreadable => "unreadable",
            Self::BrokenChain => "broken_chain",
            Self::Failed => "failed",
            Self::Compat => "compat",
        }
    }

    /// Whether frames are missing at the root of the stack.
    pub const fn is_truncated(self) -> bool {
        !matches!(self, Self::End | Self::Absent)
    }
}

/// The registers that a walk needs, in user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// Instruction pointer; in all frames but the leaf a return address.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer (rbp, x29).
    pub fp: u64,
    /// Whether the code has another word size than the kernel: a 32-bit program.
    pub compat: bool,
}

/// Reads the memory of the walked task.
pub trait Memory {
    /// The two consecutive words at `address`, or `None` if they cannot be read.
    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]>;
}

/// Steps to the caller along the frame pointer:
///
/// ```text
/// caller.fp = [fp]        caller.ip = [fp + 8]        caller.sp = fp + 16
/// ```
///
/// This layout is the same on x86_64 (`push rbp; mov rbp, rsp`) and aarch64 (AAPCS64 frame
/// records). Stacks grow down, so a frame pointer below the stack pointer is not one.
#[inline(always)]
pub fn step_frame_pointer(regs: &mut Regs, memory: &mut impl Memory) -> Result<(), Stop> {
    if regs.compat {
        return Err(Stop::Compat);
    }
    if regs.fp == 0 {
        return Err(Stop::End);
    }
    if regs.fp < regs.sp || !regs.fp.is_multiple_of(8) {
        return Err(Stop::BrokenChain);
    }
    let Some([caller_fp, caller_ip]) = memory.read_pair(regs.fp) else {
        return Err(Stop::Unreadable);
    };
    if caller_ip == 0 {
        return Err(Stop::End);
    }
    regs.sp = regs.fp.wrapping_add(16);
    regs.ip = caller_ip;
    regs.fp = caller_fp;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: u64 = 0x7000;

    fn regs(ip: u64, sp: u64, fp: u64) -> Regs {
        Regs { ip, sp, fp, compat: false }
    }

    struct Stack<'a>(&'a [u64]);

    impl Memory for Stack<'_> {
        fn read_pair(&mut self, address: u64) -> Option<[u64; 2]> {
            let slot = usize::try_from(address.checked_sub(STACK)? / 8).ok()?;
            Some([*self.0.get(slot)?, *self.0.get(slot + 1)?])
        }
    }

    /// Walks at most 8 frames and returns the ips seen and the reason for the end.
    fn check(stack: &[u64], mut regs: Regs, expected_ips: &[u64], expected: Stop) {
        let mut ips = [0; 8];
        let mut walked = 0;
        let stop = loop {
            ips[walked] = regs.ip;
            walked += 1;
            if walked == ips.len() {
                break Stop::DepthLimit;
            }
            if let Err(stop) = step_frame_pointer(&mut regs, &mut Stack(stack)) {
                break stop;
            }
        };
        assert_eq!((&ips[..walked], stop), (expected_ips, expected));
    }

    #[test]
    fn step_follows_the_chain_to_its_end() {
        let stack = [STACK + 16, 0x20, STACK + 32, 0x30, 0, 0x40];
        check(&stack, regs(0x10, STACK, STACK), &[0x10, 0x20, 0x30, 0x40], Stop::End);
    }

    #[test]
    fn step_stops_at_a_zero_return_address() {
        check(&[STACK + 16, 0], regs(0x10, STACK, STACK), &[0x10], Stop::End);
    }

    #[test]
    fn step_stops_at_unreadable_stack() {
        let stack = [STACK + 0x1000, 0x20];
        check(&stack, regs(1, STACK, STACK), &[1, 0x20], Stop::Unreadable);
    }

    #[test]
    fn step_refuses_a_frame_pointer_that_does_not_rise() {
        check(&[STACK, 0x20], regs(1, STACK, STACK), &[1, 0x20], Stop::BrokenChain);
        check(&[], regs(1, STACK, STACK - 8), &[1], Stop::BrokenChain);
        check(&[], regs(1, STACK, STACK + 4), &[1], Stop::BrokenChain);
    }

    #[test]
    fn step_does_not_walk_a_32_bit_program() {
        let regs = Regs { compat: true, ..regs(0x10, STACK, STACK) };
        check(&[STACK + 16, 0x20], regs, &[0x10], Stop::Compat);
    }
}
