//! What a sample says of its wait, from the kernel's notes and the names of its functions.

use everflame_agent_common::wait::PREEMPTED;

use super::{Reason, Wait, classify, is_idle, is_lock_contention};
use crate::aggregate::WaitKey;

/// The labels of a sampled wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Labels {
    /// What the thread waited for.
    pub reason: Reason,
    /// Whether it only waited for work.
    pub is_idle: bool,
}

/// What to say of a wait. `kernel` and `user` are names of functions, leaf first.
#[must_use]
pub fn labels(key: &WaitKey, is_kernel_thread: bool, kernel: &[&str], user: &[&str]) -> Labels {
    let wait = wait(key, is_kernel_thread);
    let reason = classify(&wait, kernel);
    Labels { reason, is_idle: is_idle(&wait, reason, kernel, user) }
}

/// Whether a thread waited for a lock that another one held.
#[must_use]
pub fn is_contention(
    key: &WaitKey,
    is_kernel_thread: bool,
    kernel: &[&str],
    user: &[&str],
) -> bool {
    if key.kernel_lock != 0 {
        return true;
    }
    let wait = wait(key, is_kernel_thread);
    is_lock_contention(&wait, classify(&wait, kernel), user)
}

fn wait(key: &WaitKey, is_kernel_thread: bool) -> Wait {
    Wait {
        task_state: key.state & !PREEMPTED,
        is_preempted: key.state & PREEMPTED != 0,
        is_runqueue: key.is_run_queue,
        is_kernel_thread,
        syscall: u32::try_from(key.syscall).ok(),
        args: [key.futex, u64::from(key.operation), 0, 0, 0, 0],
    }
}

/// How many of a kernel stack's first functions are the scheduler's and those of our own
/// programs that it ran: all up to `__schedule`, and `schedule` behind it. The stacks of threads
/// that still wait begin without them.
#[must_use]
pub fn scheduler_frames<'a>(kernel: impl IntoIterator<Item = &'a str>) -> usize {
    /// Between the program and the scheduler, in kernels that inline nothing.
    const MAX_ABOVE: usize = 16;
    let mut names = kernel.into_iter();
    let above = names.by_ref().take(MAX_ABOVE).position(|name| name == "__schedule");
    above.map_or(0, |above| above + 1 + usize::from(names.next() == Some("schedule")))
}

/// How many of a kernel stack's first functions belong to a program of ours that was run at a
/// tracepoint, rather than to what it was run in: all up to the tracepoint's own.
#[must_use]
pub fn tracepoint_frames<'a>(kernel: impl IntoIterator<Item = &'a str>) -> usize {
    /// The program, its parts, and what the tracepoint calls.
    const MAX_ABOVE: usize = 8;
    const PASSED_THROUGH: [&str; 3] = ["__bpf_trace_", "__traceiter_", "__probestub_"];
    let mut names = kernel.into_iter();
    let above = names.by_ref().take(MAX_ABOVE).position(|name| name.starts_with("bpf_trace_run"));
    let is_passed = |name: &&str| PASSED_THROUGH.iter().any(|begin| name.starts_with(begin));
    above.map_or(0, |above| above + 1 + names.take_while(is_passed).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLEEPING: WaitKey = WaitKey {
        state: 1,
        is_run_queue: false,
        syscall: -1,
        futex: 0,
        kernel_lock: 0,
        kernel_lock_flags: 0,
        operation: 0,
        length: 0,
    };

    #[test]
    fn reason_is_that_of_the_part() {
        let kernel = ["schedule", "do_nanosleep"];
        let part = |key| labels(&key, false, &kernel, &[]).reason;
        assert_eq!(part(SLEEPING), Reason::Sleep);
        assert_eq!(part(WaitKey { is_run_queue: true, ..SLEEPING }), Reason::RunQueue);
        assert_eq!(part(WaitKey { state: PREEMPTED, ..SLEEPING }), Reason::RunQueue);
    }

    #[test]
    fn programs_in_the_scheduler_are_no_part_of_the_stack() {
        let stack = ["bpf_prog_1", "bpf_trace_run1", "__schedule", "schedule", "do_nanosleep"];
        assert_eq!(scheduler_frames(stack), 4);
        assert_eq!(scheduler_frames(["__schedule", "do_exit"]), 1);
        assert_eq!(scheduler_frames(["schedule", "do_nanosleep"]), 0);
        assert_eq!(scheduler_frames([]), 0);
    }

    #[test]
    fn programs_at_tracepoints_are_no_part_of_the_stack() {
        let stack = ["", "", "bpf_trace_run1", "__bpf_trace_sched_wakeup_template", "up_write"];
        assert_eq!(tracepoint_frames(stack), 4);
        assert_eq!(tracepoint_frames(["bpf_trace_run2", "_raw_spin_lock"]), 1);
        assert_eq!(tracepoint_frames(["up_write", "vfs_read"]), 0);
    }
}
