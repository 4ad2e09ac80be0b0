//! Builds a sample in scratch memory and hands it to the ring buffer.
//!
//! Used by every hook: fill the header's common part, take stacks, submit.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
        generated::bpf_get_stack,
    },
};
use everflame_agent_common::{
    event::{Kind, SampleHeader},
    limits::{FRAME_SLOTS, MAX_KERNEL_FRAMES},
    stats::{Counter, Program},
    unwind::{Regs, Stop},
};

use crate::{
    maps::{CONFIG, EVENTS},
    stats, unwind,
};

/// A record under construction: too large for the 512 bytes of BPF stack.
#[repr(C)]
pub struct Scratch {
    header: SampleHeader,
    frames: [u64; FRAME_SLOTS],
}

impl Scratch {
    /// Starts a record about the current task.
    #[inline(always)]
    pub fn begin(&mut self, kind: Kind, value: u64) {
        let id = bpf_get_current_pid_tgid();
        self.header = SampleHeader {
            time_ns: stats::now_ns(),
            value,
            pid: (id >> 32) as u32,
            tid: id as u32,
            // SAFETY: a helper without arguments.
            cpu: unsafe { bpf_get_smp_processor_id() },
            kind: kind as u16,
            kernel_frames: 0,
            user_frames: 0,
            kernel_stop: Stop::Absent as u8,
            user_stop: Stop::Absent as u8,
            reserved: 0,
            thread_name: bpf_get_current_comm().unwrap_or_default(),
        };
    }

    /// Takes the kernel's stack at the event. Must come before [`Self::take_user_stack`].
    #[inline(always)]
    pub fn take_kernel_stack(&mut self, ctx: &impl EbpfContext) {
        const SIZE: u32 = (MAX_KERNEL_FRAMES * 8) as u32;
        // SAFETY: `frames` has room for SIZE bytes.
        let written =
            unsafe { bpf_get_stack(ctx.as_ptr(), self.frames.as_mut_ptr().cast(), SIZE, 0) };
        if written <= 0 || written > i64::from(SIZE) {
            self.header.kernel_stop = Stop::Failed as u8;
            return;
        }
        let frames = (written / 8) as u16;
        self.header.kernel_frames = frames;
        self.header.kernel_stop = if u32::from(frames) >= CONFIG.load().max_kernel_frames {
            Stop::DepthLimit as u8
        } else {
            Stop::End as u8
        };
    }

    /// Walks the user's stack from these registers.
    #[inline(always)]
    pub fn take_user_stack(&mut self, regs: Regs) {
        let first = usize::from(self.header.kernel_frames);
        let (frames, stop) = unwind::user_stack(regs, &mut self.frames, first);
        self.header.user_frames = frames as u16;
        self.header.user_stop = stop as u8;
    }

    /// Hands the record to the agent, or counts it as lost.
    #[inline(always)]
    pub fn submit(&mut self, program: Program) {
        let frames = usize::from(self.header.kernel_frames) + usize::from(self.header.user_frames);
        let size = SampleHeader::SIZE + (frames & (FRAME_SLOTS - 1)) * 8;
        // SAFETY: `size` is at most that of the header and all frame slots.
        let record = unsafe { core::slice::from_raw_parts((&raw const *self).cast::<u8>(), size) };
        // The agent looks at regular times; it is woken only when the buffer fills up.
        let waiting = EVENTS.query(0);
        let wakeup = if waiting >= u64::from(CONFIG.load().wakeup_bytes) {
            BPF_RB_FORCE_WAKEUP
        } else {
            BPF_RB_NO_WAKEUP
        };
        match EVENTS.output::<[u8]>(record, u64::from(wakeup)) {
            Ok(()) => stats::count(program, Counter::Samples),
            Err(_) => stats::count(program, Counter::RingFull),
        }
    }
}
