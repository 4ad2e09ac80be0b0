//! The programs that follow waits, and the stacks of threads that still wait.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;

use aya::programs::{BtfTracePoint, Iter, KProbe};
use aya::{Btf, Ebpf};
use everflame_agent_common::limits::{MAX_STACK_COPY, STACK_COPY_BELOW};
use everflame_agent_common::stats::Program;
use everflame_agent_common::unwind::{Registers, Stop};

use super::bpf::{BpfError, refused};
use super::event::{Sample, StackCopy, ThreadName};
use super::stats::ProgramStats;
use crate::kernel::{FINISH_TASK_SWITCH, WaitEnd};

/// Which waits are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitConfig {
    /// One wait in this much waiting of each thread, in nanoseconds; waits that are longer
    /// always are. Less than 2^32.
    pub period_ns: u64,
    /// Samples of waits in a second on each CPU, at most, but for those that are many periods long:
    /// where there would be more, a share of them is kept, which stands for all.
    pub samples_per_second: u32,
    /// Whether locks are followed that threads wait for, and who releases them.
    pub locks: bool,
}

impl WaitConfig {
    /// However many samples that are: somebody has asked for them.
    pub fn all() -> Self {
        Self { samples_per_second: u32::MAX, ..Self::default() }
    }
}

impl Default for WaitConfig {
    /// A sample in 10 ms that a thread waits, unless that is more than 1000 a second on a CPU.
    fn default() -> Self {
        Self { period_ns: 10_000_000, samples_per_second: 1000, locks: false }
    }
}

/// What the programs that follow waits have counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitStats {
    /// When a thread is made.
    pub new_task: ProgramStats,
    /// At switch-out.
    pub switch_out: ProgramStats,
    /// At switch-in; it takes the samples.
    pub switch_in: ProgramStats,
    /// At wake-ups; it takes the samples of releases.
    pub waking: ProgramStats,
    /// When the kernel waits for its own locks; samples of mutexes that it has spun for.
    pub lock_begin: ProgramStats,
    /// When it has got them; samples of CPUs that have spun.
    pub lock_end: ProgramStats,
    /// For each task, when waits that go on are listed.
    pub waiting: ProgramStats,
    /// Times that they could not be listed.
    pub waiting_errors: u64,
}

impl WaitStats {
    /// Samples that found no room.
    pub fn lost(&self) -> u64 {
        self.switch_in.lost()
            + self.waiting.lost()
            + self.of_locks().map(ProgramStats::lost).sum::<u64>()
    }

    /// Of the programs that follow locks only.
    pub fn of_locks(&self) -> impl Iterator<Item = &ProgramStats> {
        [&self.waking, &self.lock_begin, &self.lock_end].into_iter()
    }

    /// Samples for which there was no scratch memory.
    pub fn no_scratch(&self) -> u64 {
        let of_waits = self.switch_in.no_scratch + self.waiting.no_scratch;
        of_waits + self.of_locks().map(|stats| stats.no_scratch).sum::<u64>()
    }

    /// Threads and locks that could not be followed.
    pub fn untracked(&self) -> u64 {
        let of_threads = self.new_task.untracked + self.waiting.untracked;
        of_threads
            + self.switch_out.untracked
            + self.of_locks().map(|stats| stats.untracked).sum::<u64>()
    }
}

const NEW_TASK: &str = "new_task";
const SWITCH_OUT: &str = "switch_out";
const SWITCH_IN: &str = "switch_in";
const SWITCH_IN_KPROBE: &str = "switch_in_kprobe";
const WAKING: &str = "waking";
const WAITING: &str = "waiting";
const LOCK_BEGIN: &str = "lock_begin";
const LOCK_END: &str = "lock_end";

/// The programs, loaded.
pub(super) struct WaitPrograms {
    switch_in: SwitchIn,
    /// If locks are followed.
    waking: Option<Result<(), BpfError>>,
    /// Likewise; both programs or none.
    kernel_locks: Option<Result<(), BpfError>>,
}

/// How the end of a wait is seen.
enum SwitchIn {
    Tracepoint,
    FinishTaskSwitch,
}

impl WaitPrograms {
    /// Loads the programs and attaches nothing yet.
    ///
    /// # Errors
    /// Where the kernel refuses a program without which nothing is seen.
    pub(super) fn load(ebpf: &mut Ebpf, config: WaitConfig) -> Result<Self, BpfError> {
        let types = Btf::from_sys_fs().map_err(|source| BpfError::Types { source })?;
        load_tracepoint(ebpf, NEW_TASK, "task_newtask", &types)?;
        load_tracepoint(ebpf, SWITCH_OUT, "sched_switch", &types)?;
        let switch_in = match load_tracepoint(ebpf, SWITCH_IN, "sched_exit_tp", &types) {
            Ok(()) => SwitchIn::Tracepoint,
            Err(_) => {
                let program: &mut KProbe = program(ebpf, SWITCH_IN_KPROBE)?;
                program.load().map_err(refused(SWITCH_IN_KPROBE))?;
                SwitchIn::FinishTaskSwitch
            }
        };
        let waking = config.locks.then(|| load_tracepoint(ebpf, WAKING, "sched_waking", &types));
        let kernel_locks = config.locks.then(|| {
            load_tracepoint(ebpf, LOCK_BEGIN, "contention_begin", &types)?;
            load_tracepoint(ebpf, LOCK_END, "contention_end", &types)
        });
        let waiting: &mut Iter = program(ebpf, WAITING)?;
        waiting.load("task", &types).map_err(refused(WAITING))?;
        Ok(Self { switch_in, waking, kernel_locks })
    }

    /// Attaches them, the one that begins a wait last: then all threads are known, new ones and
    /// those that are there.
    pub(super) fn start(&mut self, ebpf: &mut Ebpf) -> Result<(), BpfError> {
        attach_tracepoint(ebpf, NEW_TASK)?;
        self.report(ebpf)?;
        match self.switch_in {
            SwitchIn::Tracepoint => attach_tracepoint(ebpf, SWITCH_IN)?,
            SwitchIn::FinishTaskSwitch => {
                let program: &mut KProbe = program(ebpf, SWITCH_IN_KPROBE)?;
                let [plain, specialised] = FINISH_TASK_SWITCH;
                program
                    .attach(plain, 0)
                    .or_else(|_| program.attach(specialised, 0))
                    .map_err(refused(SWITCH_IN_KPROBE))?;
            }
        }
        if let Some(Ok(())) = self.waking {
            self.waking = Some(attach_tracepoint(ebpf, WAKING));
        }
        if let Some(Ok(())) = self.kernel_locks {
            let attached = attach_tracepoint(ebpf, LOCK_END)
                .and_then(|()| attach_tracepoint(ebpf, LOCK_BEGIN));
            self.kernel_locks = Some(attached);
        }
        attach_tracepoint(ebpf, SWITCH_OUT)
    }

    /// Runs the iterator over all tasks.
    pub(super) fn report(&self, ebpf: &mut Ebpf) -> Result<(), BpfError> {
        let program: &mut Iter = program(ebpf, WAITING)?;
        let id = program.attach().map_err(refused(WAITING))?;
        let link = program.take_link(id).map_err(refused(WAITING))?;
        let mut tasks = link.into_file().map_err(|source| BpfError::Link { source })?;
        // The program writes to the ring buffer, not here; reading makes it run.
        let mut nothing = Vec::new();
        tasks.read_to_end(&mut nothing).map_err(|source| BpfError::Iterate { source })?;
        Ok(())
    }

    /// How the ends of waits are seen.
    pub(super) fn end(&self) -> WaitEnd {
        match self.switch_in {
            SwitchIn::Tracepoint => WaitEnd::SchedExit,
            SwitchIn::FinishTaskSwitch => WaitEnd::FinishTaskSwitch,
        }
    }

    /// Programs that the agent does without, and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = (Program, &BpfError)> {
        let of_locks = [(Program::Waking, &self.waking), (Program::LockBegin, &self.kernel_locks)];
        of_locks.into_iter().filter_map(|(program, state)| {
            state.as_ref().and_then(|state| state.as_ref().err()).map(|error| (program, error))
        })
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(BpfError::Missing { name })
}

fn load_tracepoint(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
    types: &Btf,
) -> Result<(), BpfError> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    program.load(tracepoint, types).map_err(refused(name))
}

fn attach_tracepoint(ebpf: &mut Ebpf, name: &'static str) -> Result<(), BpfError> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    program.attach().map_err(refused(name))?;
    Ok(())
}

/// Gives the sample of a thread that still waits what the program could not: the thread's
/// name, and the top of its stack, if the thread has not gone on meanwhile.
pub(super) fn take_user_stack(sample: &mut Sample) {
    let task = format!("/proc/{}/task/{}", sample.pid, sample.tid);
    if let Ok(name) = fs::read(format!("{task}/comm")) {
        let mut bytes = [0; 16];
        let name = name.strip_suffix(b"\n").unwrap_or(&name);
        let len = name.len().min(bytes.len() - 1);
        bytes[..len].copy_from_slice(&name[..len]);
        sample.thread_name = ThreadName(bytes);
    }
    let (Some(wait), Some(&ip)) = (sample.wait, sample.user.first()) else { return };
    if sample.user_stop != Stop::NoTable {
        return;
    }
    let start = wait.sp.wrapping_sub(STACK_COPY_BELOW);
    let stack = read_memory(sample.pid, start);
    // Only a thread that is still where it was has still the same stack.
    let is_there =
        fs::read_to_string(format!("{task}/syscall")).is_ok_and(|place| is_at(&place, wait.sp, ip));
    match stack {
        Ok(stack) if is_there && !stack.is_empty() => {
            let registers =
                Registers { ip, sp: wait.sp, fp: wait.fp, interrupted: 1, general: [0; 32] };
            sample.stack_copy = Some(Box::new(StackCopy { registers, stack }));
        }
        _ => sample.user_stop = Stop::Unreadable,
    }
}

/// Whether a line of `/proc/PID/task/TID/syscall` is about this place: it ends in the stack
/// pointer and the instruction pointer, in hexadecimal.
fn is_at(line: &str, sp: u64, ip: u64) -> bool {
    let mut words = line.split_ascii_whitespace().rev().map(|word| {
        word.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok())
    });
    words.next().flatten() == Some(ip) && words.next().flatten() == Some(sp)
}

/// As much of a process's memory from `start` on as there is, up to the limit.
fn read_memory(pid: u32, start: u64) -> io::Result<Box<[u8]>> {
    let mut memory = vec![0; MAX_STACK_COPY];
    let read = fs::File::open(format!("/proc/{pid}/mem"))?.read_at(&mut memory, start)?;
    memory.truncate(read);
    Ok(memory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_of_a_thread_is_at_the_end_of_the_line() {
        let line = "202 0x7f00 0x80 0x0 0x0 0x0 0x0 0x7ffd10 0x7f1234\n";
        assert!(is_at(line, 0x7ffd10, 0x7f1234));
        assert!(!is_at(line, 0x7ffd10, 0x7f1235));
        assert!(!is_at(line, 0x7ffd11, 0x7f1234));
        // Kernel threads, and those that run.
        assert!(!is_at("running\n", 0, 0));
        assert!(!is_at("", 0, 0));
    }

    #[test]
    fn memory_is_read_up_to_its_end() {
        let page = rustix::param::page_size();
        let own = vec![7u8; page * 3];
        let start = own.as_ptr().addr() as u64;
        let read = read_memory(std::process::id(), start).unwrap();
        assert!(read.len() >= own.len().min(MAX_STACK_COPY));
        assert_eq!(read[..own.len().min(read.len())], own[..own.len().min(read.len())]);
        assert!(read_memory(std::process::id(), 8).is_err());
    }
}
