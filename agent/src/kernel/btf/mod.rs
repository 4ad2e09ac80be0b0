//! What the running kernel's BTF says: offsets in its structures, and which tracepoints and
//! functions it has.
//!
//! Kernels before 5.15 have no helper that finds the registers of the interrupted program, so
//! the BPF programs compute where they lie; [`pt_regs_location`] gives them the numbers.
//!
//! Why a walker of its own, for two structures: aya keeps members to itself, btf-rs is under
//! the LGPL, and btfparse spends 140 ms and 55 MiB on building everything that is in the file
//! (here: less than 10 ms and 6 MiB, on Linux 6.18), loops for ever on cyclic types, and takes
//! the forward declaration of `pt_regs` on Debian's 5.10 for the structure.
//!
//! The format: Documentation/bpf/btf.rst of the kernel. Nothing that a file contains makes the
//! walker read outside it or run for longer than [`MAX_MEMBERS`] members.

mod block;
mod tcp;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use thiserror::Error;

pub use block::{BlockTracepoints, FileLocation, block_layout, file_location};
pub use tcp::{TcpHooks, tcp_layout};

/// Where the kernel shows its types.
pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The types of distributions' kernels take 4 to 8 MiB.
const MAX_BYTES: u64 = 64 << 20;

/// `task_struct` has about 300 members, with those of anonymous structures in it.
const MAX_MEMBERS: usize = 100_000;

/// Where the kernel saves a program's registers when it enters the kernel.
///
/// `registers = *(task + task_stack_offset) + stack_to_regs`, as `task_pt_regs` in
/// arch/*/include/asm/processor.h has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtRegsLocation {
    /// Bytes from a `task_struct` to its pointer to the lowest address of its kernel stack.
    pub task_stack_offset: u32,
    /// Bytes from that address to the registers, which lie at the very top of the stack.
    pub stack_to_regs: u32,
}

/// Where the kernel keeps who a task is and how long it was ready to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskLocation {
    /// Bytes from a `task_struct` to the id of its thread.
    pub pid_offset: u32,
    /// Bytes from a `task_struct` to the id of its process.
    pub tgid_offset: u32,
    /// `None` if this kernel was built without CONFIG_SCHED_INFO.
    pub queue: Option<QueueLocation>,
    /// `None` if it was built without CONFIG_FAIR_GROUP_SCHED.
    pub clock: Option<SchedulerClockLocation>,
}

/// Where the clock of the scheduler lies that a task runs by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerClockLocation {
    /// Bytes from a `task_struct` to its pointer to a `cfs_rq`.
    pub cfs_rq_offset: u32,
    /// Bytes from a `cfs_rq` to its pointer to an `rq`.
    pub rq_offset: u32,
    /// Bytes from an `rq` to its clock, in nanoseconds.
    pub clock_offset: u32,
}

/// Where the kernel keeps its account of the time that a task is ready to run but not on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLocation {
    /// Bytes from a `task_struct` to how long it was in all, in nanoseconds.
    pub run_delay_offset: u32,
    /// Bytes from a `task_struct` to since when it is; 0 there if it is not.
    pub last_queued_offset: u32,
}

/// Bytes from a `task_struct` to the scheduler's account of the task's time on CPUs, in nanoseconds.
/// `None` if that is without the time that interrupts took meanwhile (CONFIG_IRQ_TIME_ACCOUNTING).
///
/// # Errors
/// When the running kernel does not show its types, or they are not as expected.
pub fn cpu_time_offset() -> Result<Option<u32>, BtfError> {
    let bytes = read_kernel_types()?;
    let btf = Btf::parse(&bytes)?;
    let missing = |name| BtfError::Missing { name };
    let rq = btf.find("rq", Kind::Struct).ok_or(missing("struct rq"))?;
    if btf.member_offset(rq, "prev_irq_time").is_some() {
        return Ok(None);
    }
    let offset = btf.entity_offset("sum_exec_runtime");
    offset.map(Some).ok_or(missing("task_struct.se.sum_exec_runtime"))
}

/// Where the kernel counts the pages of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLocation {
    /// Bytes from a `task_struct` to the pointer to its memory.
    pub mm_offset: u32,
    /// Bytes from a `task_struct` to the pointer to its process's first thread.
    pub leader_offset: u32,
    /// Bytes from an `mm_struct` to its first counter of pages.
    pub pages_offset: u32,
    /// Bytes from one of them to the next.
    pub pages_stride: u32,
}

/// Asks the running kernel.
///
/// # Errors
/// When it does not show its types, or they are not as expected.
pub fn memory_location() -> Result<MemoryLocation, BtfError> {
    let bytes = read_kernel_types()?;
    let btf = Btf::parse(&bytes)?;
    let offset = |of, member, name| {
        let ty = btf.find(of, Kind::Struct).ok_or(BtfError::Missing { name })?;
        btf.member_offset(ty, member).ok_or(BtfError::Missing { name })
    };
    let rss = offset("mm_struct", "rss_stat", "mm_struct.rss_stat")?;
    // Linux 6.2 made each counter one of those that CPUs add to in batches.
    let (at, pages_stride) = match btf.find("mm_rss_stat", Kind::Struct) {
        Some(_) => (offset("mm_rss_stat", "count", "mm_rss_stat.count")?, 8),
        None => (
            offset("percpu_counter", "count", "percpu_counter.count")?,
            btf.find("percpu_counter", Kind::Struct).map_or(0, |counter| counter.size_or_type),
        ),
    };
    Ok(MemoryLocation {
        mm_offset: offset("task_struct", "mm", "task_struct.mm")?,
        leader_offset: offset("task_struct", "group_leader", "task_struct.group_leader")?,
        pages_offset: rss + at,
        pages_stride,
    })
}

/// What the tracepoint `mark_victim` says of the process that the kernel ends for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VictimArgument {
    /// One of its tasks (Linux 6.9, and some older ones).
    Task,
    /// The id of one of its threads.
    ThreadId,
}

/// Asks the running kernel.
///
/// # Errors
/// When it does not show its types, or has no such tracepoint.
pub fn victim_argument() -> Result<VictimArgument, BtfError> {
    let bytes = read_kernel_types()?;
    let arguments = Btf::parse(&bytes)?.tracepoint("mark_victim");
    let is_pointer = arguments.and_then(|arguments| arguments.first().copied());
    match is_pointer.ok_or(BtfError::Missing { name: "mark_victim" })? {
        true => Ok(VictimArgument::Task),
        false => Ok(VictimArgument::ThreadId),
    }
}

/// Asks the running kernel.
///
/// # Errors
/// When it does not show its types, or they are not as expected.
pub fn task_location() -> Result<TaskLocation, BtfError> {
    let bytes = read_kernel_types()?;
    let btf = Btf::parse(&bytes)?;
    let missing = |name| BtfError::Missing { name };
    let task = btf.find("task_struct", Kind::Struct).ok_or(missing("struct task_struct"))?;
    let offset = |member, name| btf.member_offset(task, member).ok_or(missing(name));
    Ok(TaskLocation {
        pid_offset: offset("pid", "task_struct.pid")?,
        tgid_offset: offset("tgid", "task_struct.tgid")?,
        queue: btf.queue_location(),
        clock: btf.clock_location(),
    })
}

/// Why the kernel's types do not say where something is.
#[derive(Debug, Error)]
pub enum BtfError {
    /// There is nothing to read.
    #[error("cannot read the kernel's types from {path}")]
    Read {
        /// Where they should be.
        path: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// No kernel has that many types.
    #[error("the kernel's types take more than {MAX_BYTES} bytes")]
    TooLarge,
    /// It is not BTF, or of a kind that is not known.
    #[error("the kernel's types cannot be understood: {what} at byte {offset}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where, from the start of the section that is wrong.
        offset: usize,
    },
    /// This kernel does it in another way.
    #[error("the kernel has no `{name}`")]
    Missing {
        /// A structure, or one and its member.
        name: &'static str,
    },
    /// What was found makes no sense.
    #[error("{regs_bytes} bytes of registers do not fit a kernel stack")]
    RegsSize {
        /// Size of `struct pt_regs`.
        regs_bytes: u32,
    },
}

/// Asks the running kernel.
///
/// # Errors
/// When it does not show its types, or they are not as expected.
pub fn pt_regs_location() -> Result<PtRegsLocation, BtfError> {
    locate(&read_kernel_types()?)
}

pub(super) fn read_kernel_types() -> Result<Vec<u8>, BtfError> {
    read(Path::new(KERNEL_BTF))
        .map_err(|source| BtfError::Read { path: KERNEL_BTF, source })?
        .ok_or(BtfError::TooLarge)
}

/// `None` if the file is too large to be true.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_BYTES).then_some(bytes))
}

fn locate(bytes: &[u8]) -> Result<PtRegsLocation, BtfError> {
    let btf = Btf::parse(bytes)?;
    let missing = |name| BtfError::Missing { name };
    let task = btf.find("task_struct", Kind::Struct).ok_or(missing("struct task_struct"))?;
    let task_stack_offset = btf.member_offset(task, "stack").ok_or(missing("task_struct.stack"))?;
    // On x86_64 kernels built with FRED the processor saves two more words above them.
    let above_and_regs = btf
        .find("fred_frame", Kind::Struct)
        .or_else(|| btf.find("pt_regs", Kind::Struct))
        .ok_or(missing("struct pt_regs"))?;
    let regs_bytes = above_and_regs.size_or_type;
    let stack_to_regs =
        stack_bytes().checked_sub(regs_bytes).ok_or(BtfError::RegsSize { regs_bytes })?;
    Ok(PtRegsLocation { task_stack_offset, stack_to_regs })
}

/// `THREAD_SIZE` of both architectures: arch/x86/include/asm/page_64_types.h and
/// arch/arm64/include/asm/memory.h, where a stack has at least one page. Kernels built with
/// KASAN, for debugging, have twice that and their types do not say so: what is read there is
/// not registers.
fn stack_bytes() -> u32 {
    const STACK_BYTES: u32 = 16 << 10;
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(STACK_BYTES);
    STACK_BYTES.max(page)
}

/// Kinds of types that are looked at, by their numbers in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pointer = 2,
    Struct = 4,
    Union = 5,
    Enumeration = 6,
    Typedef = 8,
    Function = 12,
    Prototype = 13,
}

/// `struct btf_type`, and where what belongs to it starts.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    size_or_type: u32,
    rest: usize,
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn is(self, kind: Kind) -> bool {
        self.kind() == kind as u32
    }

    /// How many members, enumerators, parameters or variables there are.
    fn len(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Whether offsets of members share their word with the width of bit fields.
    fn has_bit_fields(self) -> bool {
        self.info >> 31 == 1
    }

    /// Bytes that follow the type, or `None` for kinds that came after this was written.
    fn rest_bytes(self) -> Option<usize> {
        Some(match self.kind() {
            // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
            2 | 7..=12 | 16 | 18 => 0,
            // Integer, variable, declaration tag.
            1 | 14 | 17 => 4,
            // Array.
            3 => 12,
            // Structure, union, section, 64-bit enumeration.
            4 | 5 | 15 | 19 => 12 * self.len(),
            // Enumeration, function prototype.
            6 | 13 => 8 * self.len(),
            _ => return None,
        })
    }
}

/// The two sections of a BTF file.
pub(super) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type starts; type 1 is the first one.
    starts: Vec<usize>,
}

impl<'a> Btf<'a> {
    const MAGIC: u16 = 0xeb9f;
    const TYPE_BYTES: usize = 12;
    const MEMBER_BYTES: usize = 12;
    const PARAMETER_BYTES: usize = 8;
    const ENUMERATOR_BYTES: usize = 8;

    /// `bytes` in this machine's own byte order.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let malformed = |what, offset| BtfError::Malformed { what, offset };
        let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
        if magic != Some(Self::MAGIC) {
            return Err(malformed("no magic number", 0));
        }
        let header_len = word(bytes, 4).ok_or(malformed("no header", 4))?;
        let section = |at: usize| {
            let start = header_len.checked_add(word(bytes, at)?)? as usize;
            let len = word(bytes, at + 4)? as usize;
            bytes.get(start..)?.get(..len)
        };
        let types = section(8).ok_or(malformed("no types", 8))?;
        let strings = section(16).ok_or(malformed("no names", 16))?;
        let mut btf = Self { types, strings, starts: Vec::new() };
        let mut start = 0;
        while start < types.len() {
            let next = btf
                .type_at(start)
                .ok_or(malformed("a type that is cut off", start))?
                .rest_bytes()
                .ok_or(malformed("a type of an unknown kind", start))?;
            btf.starts.push(start);
            start += Self::TYPE_BYTES + next;
        }
        Ok(btf)
    }

    fn type_at(&self, start: usize) -> Option<Type> {
        Some(Type {
            name: word(self.types, start)?,
            info: word(self.types, start + 4)?,
            size_or_type: word(self.types, start + 8)?,
            rest: start + Self::TYPE_BYTES,
        })
    }

    fn type_by_id(&self, id: u32) -> Option<Type> {
        let start = *self.starts.get((id as usize).checked_sub(1)?)?;
        self.type_at(start)
    }

    /// The first type of that name and kind. A forward declaration is of another kind.
    fn find(&self, name: &str, kind: Kind) -> Option<Type> {
        self.starts
            .iter()
            .filter_map(|start| self.type_at(*start))
            .find(|ty| ty.is(kind) && self.is_named(ty.name, name))
    }

    /// Bytes from the start of a structure to one of its members, which may be in structures
    /// and unions without a name.
    fn member_offset(&self, of: Type, name: &str) -> Option<u32> {
        let mut unseen = vec![(of, 0u32)];
        let mut seen = 0;
        while let Some((outer, outer_bits)) = unseen.pop() {
            for index in 0..outer.len() {
                seen += 1;
                if seen > MAX_MEMBERS {
                    return None;
                }
                let at = outer.rest + index * Self::MEMBER_BYTES;
                let bits = word(self.types, at + 8)?;
                let bits = if outer.has_bit_fields() { bits & 0xff_ffff } else { bits };
                let bits = outer_bits.checked_add(bits)?;
                let member = word(self.types, at)?;
                if self.is_named(member, name) {
                    return bits.is_multiple_of(8).then_some(bits / 8);
                }
                if !self.is_named(member, "") {
                    continue;
                }
                match self.type_by_id(word(self.types, at + 4)?) {
                    Some(ty) if ty.is(Kind::Struct) || ty.is(Kind::Union) => {
                        unseen.push((ty, bits));
                    }
                    _ => {}
                }
            }
        }
        None
    }

    /// See [`TaskLocation::queue`].
    pub(super) fn queue_location(&self) -> Option<QueueLocation> {
        let task = self.find("task_struct", Kind::Struct)?;
        let info = self.find("sched_info", Kind::Struct)?;
        let at = self.member_offset(task, "sched_info")?;
        Some(QueueLocation {
            run_delay_offset: at.checked_add(self.member_offset(info, "run_delay")?)?,
            last_queued_offset: at.checked_add(self.member_offset(info, "last_queued")?)?,
        })
    }

    /// See [`TaskLocation::clock`].
    fn clock_location(&self) -> Option<SchedulerClockLocation> {
        Some(SchedulerClockLocation {
            cfs_rq_offset: self.entity_offset("cfs_rq")?,
            rq_offset: self.member_offset(self.find("cfs_rq", Kind::Struct)?, "rq")?,
            clock_offset: self.member_offset(self.find("rq", Kind::Struct)?, "clock")?,
        })
    }

    /// Bytes from a `task_struct` to a member of what the scheduler keeps of it.
    fn entity_offset(&self, member: &str) -> Option<u32> {
        let task = self.find("task_struct", Kind::Struct)?;
        let entity = self.find("sched_entity", Kind::Struct)?;
        self.member_offset(task, "se")?.checked_add(self.member_offset(entity, member)?)
    }

    /// The value of an enumerator, of whatever enumeration.
    fn enumerator(&self, name: &str) -> Option<u32> {
        let types = self.starts.iter().filter_map(|start| self.type_at(*start));
        types.filter(|ty| ty.is(Kind::Enumeration)).find_map(|ty| {
            (0..ty.len()).map(|index| ty.rest + index * Self::ENUMERATOR_BYTES).find_map(|at| {
                let is_it = self.is_named(word(self.types, at)?, name);
                if is_it { word(self.types, at + 4) } else { None }
            })
        })
    }

    /// Whether the kernel has a function of that name.
    pub(super) fn has_function(&self, name: &str) -> bool {
        self.find(name, Kind::Function).is_some()
    }

    /// Bytes from the start of a structure to one of its members.
    fn offset(&self, of: &str, member: &str) -> Option<u32> {
        self.member_offset(self.find(of, Kind::Struct)?, member)
    }

    /// Of each argument that a program on a tracepoint gets, whether it is a pointer; `None` if
    /// there is no such tracepoint.
    ///
    /// For each one the kernel has `typedef void (*btf_trace_NAME)(void *, ...)`
    /// (include/trace/bpf_probe.h); what the first parameter points at is not for programs.
    pub(super) fn tracepoint(&self, name: &str) -> Option<Vec<bool>> {
        let typedef = self.find(&format!("btf_trace_{name}"), Kind::Typedef)?;
        let pointer = self.type_by_id(typedef.size_or_type).filter(|ty| ty.is(Kind::Pointer))?;
        let prototype =
            self.type_by_id(pointer.size_or_type).filter(|ty| ty.is(Kind::Prototype))?;
        let is_pointer = |index| {
            let ty = word(self.types, prototype.rest + index * Self::PARAMETER_BYTES + 4)?;
            Some(self.type_by_id(ty)?.is(Kind::Pointer))
        };
        (1..prototype.len()).map(is_pointer).collect()
    }

    fn is_named(&self, at: u32, name: &str) -> bool {
        let tail = self.strings.get(at as usize..);
        tail.and_then(|tail| tail.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// The four bytes at an offset.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests;
