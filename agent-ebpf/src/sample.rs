//! Builds a sample in scratch memory and hands it to the ring buffer.
//!
//! Used by every hook: fill the header's common part, take stacks, submit.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, task_struct},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id,
        generated::{bpf_get_stack, bpf_get_task_stack, bpf_probe_read_user},
    },
};
use everflame_agent_common::{
    event::{DETAIL_WORDS, Kind, REGISTERS_AT, STACK_AT, SampleHeader, THREAD_NAME_LEN},
    limits::{
        FRAME_SLOTS, MAX_KERNEL_FRAMES, MAX_STACK_COPY, STACK_COPY_BELOW, STACK_COPY_PAGE,
        STACK_COPY_PAGES,
    },
    stats::{Counter, Program},
    unwind::{Registers, Stop},
    wait::{Wait, Weight},
};

use crate::{
    maps::{EVENTS, IO_RULES, IO_SAMPLING, IO_SCRATCH, IO_WALK, SUBMITTING, config},
    registers::{self, Found},
    stats,
    unwind::{self, Parts, RuleCache, Walk},
};

/// A record under construction: too large for the 512 bytes of BPF stack.
#[repr(C)]
pub struct Scratch {
    header: SampleHeader,
    /// Kernel addresses, then user addresses.
    pub frames: [u64; FRAME_SLOTS],
    registers: Registers,
    stack: [u8; MAX_STACK_COPY],
}

const _: () = assert!(core::mem::offset_of!(Scratch, registers) == REGISTERS_AT);
const _: () = assert!(core::mem::offset_of!(Scratch, stack) == STACK_AT);

impl Scratch {
    /// Starts a record about the current task.
    #[inline(always)]
    pub fn begin(&mut self, kind: Kind, weight: Weight) {
        self.header = header(kind, weight);
    }

    /// Says whom the record is about, if not the current task, whose name goes with it.
    #[inline(always)]
    pub fn set_task(&mut self, pid: u32, tid: u32) {
        self.header.pid = pid;
        self.header.tid = tid;
        self.header.thread_name = [0; THREAD_NAME_LEN];
    }

    /// Says what the record stands for, where that is not known from the start.
    #[inline(always)]
    pub fn set_wait(&mut self, weight: Weight, wait: Wait) {
        self.header.value = weight.value;
        self.header.count = weight.count;
        self.header.detail = wait.to_detail();
    }

    /// Says what is particular to the record's kind.
    #[inline(always)]
    pub fn set_detail(&mut self, detail: [u64; DETAIL_WORDS]) {
        self.header.detail = detail;
    }

    /// Takes the stack of a task that is in the kernel and does not run.
    ///
    /// # Safety
    /// `task` comes from the kernel, which knows it for a task.
    #[inline(always)]
    pub unsafe fn take_kernel_stack_of(&mut self, task: *mut task_struct) {
        const SIZE: u32 = (MAX_KERNEL_FRAMES * 8) as u32;
        // SAFETY: `frames` has room for SIZE bytes.
        let written = unsafe { bpf_get_task_stack(task, self.frames.as_mut_ptr().cast(), SIZE, 0) };
        self.took_kernel_stack(written);
    }

    /// Takes the kernel's stack at the event. Must come before [`Self::take_user_stack`].
    #[inline(always)]
    pub fn take_kernel_stack(&mut self, ctx: &impl EbpfContext) {
        const SIZE: u32 = (MAX_KERNEL_FRAMES * 8) as u32;
        // SAFETY: `frames` has room for SIZE bytes.
        let written =
            unsafe { bpf_get_stack(ctx.as_ptr(), self.frames.as_mut_ptr().cast(), SIZE, 0) };
        self.took_kernel_stack(written);
    }

    /// `written` is what the kernel's helper says: bytes, or what is wrong.
    #[inline(always)]
    fn took_kernel_stack(&mut self, written: i64) {
        if written <= 0 || written > (MAX_KERNEL_FRAMES * 8) as i64 {
            self.header.kernel_stop = Stop::Failed as u8;
            return;
        }
        let frames = (written / 8) as u16;
        self.header.kernel_frames = frames;
        self.header.kernel_stop = if u32::from(frames) >= config!(max_kernel_frames) {
            Stop::DepthLimit as u8
        } else {
            Stop::End as u8
        };
    }

    /// Walks the user's stack from the registers in `walk`.
    #[inline(always)]
    pub fn take_user_stack(&mut self, program: Program, walk: &mut Walk, rules: &mut RuleCache) {
        let first = usize::from(self.header.kernel_frames);
        let (pid, now_ns) = (self.header.pid, self.header.time_ns);
        let parts = Parts { walk, rules, frames: &mut self.frames };
        // SAFETY: all are borrowed from this CPU's maps.
        let (frames, stop) = unsafe { unwind::user_stack(program, parts, first, pid, now_ns) };
        self.header.user_frames = frames as u16;
        self.header.user_stop = stop as u8;
        self.header.mapped_ns = walk.layout.mapped_ns;
        if stop == Stop::NoTable || stop == Stop::Unmapped && !walk.is_guessed() {
            self.copy_stack(program, walk);
        }
    }

    /// Takes one address of user code.
    #[inline(always)]
    pub fn take_leaf(&mut self, ip: u64, stop: Stop) {
        let first = usize::from(self.header.kernel_frames);
        self.frames[first & (FRAME_SLOTS - 1)] = ip;
        self.header.user_frames = 1;
        self.header.user_stop = stop as u8;
    }

    /// Copies what the agent needs to finish the walk.
    #[inline(always)]
    fn copy_stack(&mut self, program: Program, walk: &mut Walk) {
        // A quarter of the ring buffer is for samples without copies, which are small. The
        // reader has been awake since the first quarter was full.
        let is_short_of_room = EVENTS.query(0) >= u64::from(config!(wakeup_bytes)) * 3;
        if is_short_of_room || walk.may_not_copy(config!(stack_copies_per_second)) {
            return stats::count(program, Counter::StackCopiesRefused);
        }
        self.registers = walk.registers;
        let start = walk.registers.sp.wrapping_sub(STACK_COPY_BELOW);
        let mut copied = 0;
        for _ in 0..STACK_COPY_PAGES {
            let from = start.wrapping_add(copied);
            let size = STACK_COPY_PAGE as u64 - (from & (STACK_COPY_PAGE as u64 - 1));
            // SAFETY: each is a page at most, for all of which there is room; the kernel checks the address.
            let read = unsafe {
                bpf_probe_read_user(
                    self.stack.as_mut_ptr().add(copied as usize).cast(),
                    size as u32,
                    from as *const c_void,
                )
            };
            if read != 0 {
                break;
            }
            // Written down, as the compiler would reckon it from addresses, which the verifier knows nothing of.
            // SAFETY: adds registers.
            unsafe { core::arch::asm!("{0} += {1}", inout(reg) copied, in(reg) size) };
        }
        self.header.stack_bytes = copied as u32;
        if copied == 0 {
            self.header.user_stop = Stop::Unreadable as u8;
            return;
        }
        stats::count(program, Counter::StackCopies);
    }

    /// Hands the record to the agent, or counts it as lost.
    #[inline(always)]
    pub fn submit(&mut self, program: Program) {
        let frames = usize::from(self.header.kernel_frames) + usize::from(self.header.user_frames);
        let stack = self.header.stack_bytes as usize;
        let size = if stack == 0 {
            SampleHeader::SIZE + (frames & (FRAME_SLOTS - 1)) * 8
        } else {
            STACK_AT + if stack > MAX_STACK_COPY { MAX_STACK_COPY } else { stack }
        };
        // SAFETY: `size` is at most that of the whole.
        let record = unsafe { core::slice::from_raw_parts((&raw const *self).cast::<u8>(), size) };
        let wakeup = u64::from(wakeup());
        hand_over(program, || EVENTS.output::<[u8]>(record, wakeup).is_ok());
    }
}

/// Tells the agent of a process, at once.
#[inline(always)]
pub fn announce(program: Program, kind: Kind, pid: u32, tid: u32) {
    let header = SampleHeader {
        time_ns: stats::now_ns(),
        pid,
        tid,
        kind: kind as u16,
        kernel_stop: Stop::Absent as u8,
        user_stop: Stop::Absent as u8,
        ..SampleHeader::default()
    };
    submit_header(program, &header, BPF_RB_FORCE_WAKEUP);
}

/// Hands over a record that is nothing but a header, about no task.
#[inline(always)]
pub fn submit_about_nobody(
    program: Program,
    kind: Kind,
    weight: Weight,
    detail: [u64; DETAIL_WORDS],
) {
    let header = SampleHeader {
        time_ns: stats::now_ns(),
        value: weight.value,
        count: weight.count,
        kind: kind as u16,
        kernel_stop: Stop::Absent as u8,
        user_stop: Stop::Absent as u8,
        detail,
        ..SampleHeader::default()
    };
    submit_header(program, &header, wakeup());
}

/// A task that is not the current one.
#[derive(Clone, Copy)]
pub struct Whose {
    /// Its process in the upper half, the thread in the lower half; 0 if it is not known.
    pub task: u64,
    /// The thread's name.
    pub thread_name: [u64; 2],
}

/// Hands over a record about another task that is nothing but a header. It is written where the agent reads it:
/// functions that call others have no room for it on the BPF stack.
#[inline(always)]
pub fn submit_about(
    program: Program,
    kind: Kind,
    weight: Weight,
    detail: [u64; DETAIL_WORDS],
    whose: Whose,
) {
    hand_over(program, || {
        let Some(mut entry) = EVENTS.reserve::<SampleHeader>(0) else { return false };
        let record = entry.as_mut_ptr();
        // SAFETY: the entry has room for one; all of its fields are written.
        unsafe {
            (*record).time_ns = stats::now_ns();
            (*record).value = weight.value;
            (*record).pid = (whose.task >> 32) as u32;
            (*record).tid = whose.task as u32;
            (*record).cpu = 0;
            (*record).kind = kind as u16;
            (*record).kernel_frames = 0;
            (*record).user_frames = 0;
            (*record).kernel_stop = Stop::Absent as u8;
            (*record).user_stop = Stop::Absent as u8;
            (*record).stack_bytes = 0;
            let name = (&raw mut (*record).thread_name).cast::<u64>();
            name.write(whose.thread_name[0]);
            name.add(1).write(whose.thread_name[1]);
            (*record).mapped_ns = 0;
            (*record).count = weight.count;
            let words = (&raw mut (*record).detail).cast::<u64>();
            let mut at = 0;
            while at < DETAIL_WORDS {
                words.add(at).write(detail[at]);
                at += 1;
            }
        }
        entry.submit(u64::from(wakeup()));
        true
    });
}

/// Hands over a record about the current task that is nothing but a header.
#[inline(always)]
pub fn submit_without_stacks(program: Program, kind: Kind, detail: [u64; DETAIL_WORDS]) {
    let header = SampleHeader { detail, ..header(kind, Weight { value: 0, count: 1 }) };
    submit_header(program, &header, wakeup());
}

#[inline(always)]
fn submit_header(program: Program, header: &SampleHeader, wakeup: u32) {
    // SAFETY: integers without padding between them.
    let record = unsafe {
        core::slice::from_raw_parts(ptr::from_ref(header).cast::<u8>(), SampleHeader::SIZE)
    };
    hand_over(program, || EVENTS.output::<[u8]>(record, u64::from(wakeup)).is_ok());
}

/// What a record about the current task begins with.
#[inline(always)]
fn header(kind: Kind, weight: Weight) -> SampleHeader {
    let id = bpf_get_current_pid_tgid();
    SampleHeader {
        time_ns: stats::now_ns(),
        value: weight.value,
        pid: (id >> 32) as u32,
        tid: id as u32,
        // SAFETY: a helper without arguments.
        cpu: unsafe { bpf_get_smp_processor_id() },
        kind: kind as u16,
        kernel_frames: 0,
        user_frames: 0,
        kernel_stop: Stop::Absent as u8,
        user_stop: Stop::Absent as u8,
        stack_bytes: 0,
        thread_name: bpf_get_current_comm().unwrap_or_default(),
        mapped_ns: 0,
        count: weight.count,
        detail: [0; DETAIL_WORDS],
    }
}

/// The agent looks at regular times; it is woken only when the buffer fills up.
#[inline(always)]
fn wakeup() -> u32 {
    let waiting = EVENTS.query(0);
    if waiting >= u64::from(config!(wakeup_bytes)) { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }
}

/// Has a record written to the ring buffer, or counts it as lost.
#[inline(always)]
fn hand_over(program: Program, write: impl FnOnce() -> bool) {
    let submitting = SUBMITTING.get_ptr_mut(0);
    // Others come in between: interrupts, and where programs of probes are preempted, other tasks.
    if let Some(submitting) = submitting {
        // SAFETY: an aligned word of a map.
        unsafe { stats::add_shared(submitting, 1) };
    }
    let is_written = write();
    if let Some(submitting) = submitting {
        // SAFETY: as above.
        unsafe { stats::add_shared(submitting, u64::MAX) };
    }
    stats::count(program, if is_written { Counter::Samples } else { Counter::RingFull });
}

/// Where a program builds its samples: values of this CPU's maps that are its own.
pub struct Memory {
    /// How many runs of the program want the rest.
    is_sampling: *mut u64,
    scratch: *mut Scratch,
    walk: *mut Walk,
    rules: *mut RuleCache,
}

impl Memory {
    /// # Safety
    /// The pointers are to values of this CPU's maps, used with each other only.
    #[inline(always)]
    pub unsafe fn new(
        is_sampling: *mut u64,
        scratch: *mut Scratch,
        walk: *mut Walk,
        rules: *mut RuleCache,
    ) -> Self {
        Self { is_sampling, scratch, walk, rules }
    }
}

/// Samples the current task; its stack in the kernel only by `kernel`. One sample at a time: what interrupts or
/// preempts this and wants the same memory counts its sample as lost.
#[inline(always)]
pub fn sample_current_task<C: EbpfContext>(
    program: Program,
    memory: Memory,
    kernel: Option<&C>,
    kind: Kind,
    weight: Weight,
    detail: [u64; DETAIL_WORDS],
) {
    let Memory { is_sampling, scratch, walk, rules } = memory;
    // SAFETY: an aligned word of a map.
    unsafe { stats::add_shared(is_sampling, 1) };
    // Whoever finds a 1 is alone until it takes its own back: all others find more.
    // SAFETY: as above.
    if unsafe { is_sampling.read_volatile() } == 1 {
        // SAFETY: this CPU's memory, three maps; one at a time.
        let (scratch, walk, rules) = unsafe { (&mut *scratch, &mut *walk, &mut *rules) };
        scratch.begin(kind, weight);
        scratch.set_detail(detail);
        if let Some(ctx) = kernel {
            scratch.take_kernel_stack(ctx);
        }
        match registers::of_current_task(&mut walk.registers) {
            Found::User => scratch.take_user_stack(program, walk, rules),
            Found::Compat => scratch.take_leaf(walk.registers.ip, Stop::Compat),
            Found::Kernel => {}
        }
        scratch.submit(program);
    } else {
        stats::count(program, Counter::NoScratch);
    }
    // SAFETY: as above.
    unsafe { stats::add_shared(is_sampling, 1u64.wrapping_neg()) };
}

/// Samples the current task in what it wants of a disk or of the network.
#[inline(always)]
pub fn sample_for_io(
    ctx: &impl EbpfContext,
    program: Program,
    kind: Kind,
    weight: Weight,
    detail: [u64; DETAIL_WORDS],
) {
    let (Some(is_sampling), Some(scratch), Some(walk), Some(rules)) = (
        IO_SAMPLING.get_ptr_mut(0),
        IO_SCRATCH.get_ptr_mut(0),
        IO_WALK.get_ptr_mut(0),
        IO_RULES.get_ptr_mut(0),
    ) else {
        return stats::count(program, Counter::NoScratch);
    };
    // SAFETY: this CPU's maps, which nothing else uses.
    let memory = unsafe { Memory::new(is_sampling, scratch, walk, rules) };
    sample_current_task(program, memory, Some(ctx), kind, weight, detail);
}
