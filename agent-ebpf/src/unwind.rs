//! Walks a user stack into a sample: the entry that every hook uses.
//!
//! The step itself is `everflame_agent_common::unwind`; this file supplies the loop and the
//! memory. Input are user registers, output are addresses and the reason for the end, so
//! that another way of stepping changes nothing for the callers.

use aya_ebpf::helpers::bpf_probe_read_user;
use everflame_agent_common::{
    limits::{FRAME_SLOTS, MAX_USER_FRAMES},
    unwind::{Memory, Regs, Stop, step_frame_pointer},
};

/// The memory of the current task.
struct CurrentTask;

impl Memory for CurrentTask {
    #[inline(always)]
    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]> {
        // SAFETY: the helper checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_user(address as *const [u64; 2]) }.ok()
    }
}

/// Writes the addresses of the current task's user stack, leaf first, into `frames` from
/// `first` on. Returns how many, and why the walk ended.
#[inline(always)]
pub fn user_stack(mut regs: Regs, frames: &mut [u64; FRAME_SLOTS], first: usize) -> (usize, Stop) {
    let mut walked = 0;
    while walked < MAX_USER_FRAMES {
        frames[(first + walked) & (FRAME_SLOTS - 1)] = regs.ip;
        walked += 1;
        if let Err(stop) = step_frame_pointer(&mut regs, &mut CurrentTask) {
            return (walked, stop);
        }
    }
    (walked, Stop::DepthLimit)
}
