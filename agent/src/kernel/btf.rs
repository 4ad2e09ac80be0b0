//! Offsets in structures of the running kernel, from its BTF.
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

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use thiserror::Error;

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
    let queue = || {
        let at = btf.member_offset(task, "sched_info")?;
        let info = btf.find("sched_info", Kind::Struct)?;
        Some(QueueLocation {
            run_delay_offset: at.checked_add(btf.member_offset(info, "run_delay")?)?,
            last_queued_offset: at.checked_add(btf.member_offset(info, "last_queued")?)?,
        })
    };
    let clock = || {
        let [entity, cfs_rq, rq] =
            ["sched_entity", "cfs_rq", "rq"].map(|name| btf.find(name, Kind::Struct));
        let at = btf.member_offset(task, "se")?;
        Some(SchedulerClockLocation {
            cfs_rq_offset: at.checked_add(btf.member_offset(entity?, "cfs_rq")?)?,
            rq_offset: btf.member_offset(cfs_rq?, "rq")?,
            clock_offset: btf.member_offset(rq?, "clock")?,
        })
    };
    Ok(TaskLocation {
        pid_offset: offset("pid", "task_struct.pid")?,
        tgid_offset: offset("tgid", "task_struct.tgid")?,
        queue: queue(),
        clock: clock(),
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

fn read_kernel_types() -> Result<Vec<u8>, BtfError> {
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
    Struct = 4,
    Union = 5,
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
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type starts; type 1 is the first one.
    starts: Vec<usize>,
}

impl<'a> Btf<'a> {
    const MAGIC: u16 = 0xeb9f;
    const TYPE_BYTES: usize = 12;
    const MEMBER_BYTES: usize = 12;

    /// `bytes` in this machine's own byte order.
    fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
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
mod tests {
    use super::*;

    const STRUCT: u32 = Kind::Struct as u32;
    const UNION: u32 = Kind::Union as u32;
    const FORWARD: u32 = 7;
    const TYPEDEF: u32 = 8;

    /// Assembles a BTF file type by type.
    struct File {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl File {
        fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0] }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend_from_slice(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn words(&mut self, words: &[u32]) {
            self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }

        /// Members are name, type and offset in bits.
        fn add(mut self, kind: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> Self {
            let name = self.name(name);
            self.words(&[name, kind << 24 | members.len() as u32, size]);
            for (name, ty, bits) in members {
                let name = self.name(name);
                self.words(&[name, *ty, *bits]);
            }
            self
        }

        fn bytes(&self) -> Vec<u8> {
            let types = self.types.len() as u32;
            let mut bytes = Btf::MAGIC.to_ne_bytes().to_vec();
            bytes.extend([1, 0]);
            for word in [24, 0, types, types, self.strings.len() as u32] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(&self.types);
            bytes.extend(&self.strings);
            bytes
        }
    }

    /// As in a kernel with randomised structures: members lie in one without a name, here two
    /// levels deep, of types that come later.
    fn kernel() -> File {
        File::new()
            .add(STRUCT, "task_struct", 3264, &[("thread_info", 9, 0), ("", 2, 192)])
            .add(STRUCT, "", 3240, &[("state", 9, 0), ("", 3, 32)])
            .add(UNION, "", 8, &[("other", 9, 0), ("stack", 9, 32)])
            .add(FORWARD, "pt_regs", 0, &[])
            .add(STRUCT, "pt_regs", 168, &[])
    }

    fn located(file: &File) -> (u32, u32) {
        let location = locate(&file.bytes()).unwrap();
        (location.task_stack_offset, location.stack_to_regs)
    }

    #[test]
    fn members_of_anonymous_structures_are_found() {
        assert_eq!(located(&kernel()), (24 + 4 + 4, stack_bytes() - 168));
    }

    #[test]
    fn what_fred_saves_lies_above() {
        let fred = kernel().add(STRUCT, "fred_frame", 184, &[]);
        assert_eq!(located(&fred).1, stack_bytes() - 184);
    }

    #[test]
    fn bit_fields_do_not_disturb() {
        let with_bit_fields = STRUCT | 1 << 7;
        let file = File::new()
            .add(with_bit_fields, "task_struct", 64, &[("flag", 9, 1 << 24 | 3), ("stack", 9, 64)])
            .add(STRUCT, "pt_regs", 168, &[]);
        assert_eq!(located(&file).0, 8);
        let odd = File::new().add(STRUCT, "task_struct", 64, &[("stack", 9, 3)]);
        assert!(matches!(locate(&odd.bytes()), Err(BtfError::Missing { .. })));
    }

    #[track_caller]
    fn check_error(file: &File, expected: &str) {
        assert_eq!(locate(&file.bytes()).unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_is_missing_is_named() {
        check_error(&File::new(), "the kernel has no `struct task_struct`");
        let task = || File::new().add(STRUCT, "task_struct", 8, &[("stack", 9, 0)]);
        check_error(&task(), "the kernel has no `struct pt_regs`");
        let large = task().add(STRUCT, "pt_regs", 1 << 20, &[]);
        check_error(&large, "1048576 bytes of registers do not fit a kernel stack");
        let renamed = File::new().add(STRUCT, "task_struct", 8, &[("stacks", 9, 0)]);
        check_error(&renamed, "the kernel has no `task_struct.stack`");
        let unknown = kernel().add(31, "new", 0, &[]);
        let at = kernel().types.len();
        let message = format!(
            "the kernel's types cannot be understood: a type of an unknown kind at byte {at}"
        );
        check_error(&unknown, &message);
    }

    #[test]
    fn cyclic_and_branching_structures_end() {
        let cyclic = File::new().add(STRUCT, "task_struct", 8, &[("", 1, 0), ("", 1, 8)]);
        check_error(&cyclic, "the kernel has no `task_struct.stack`");
        let typedef = File::new()
            .add(STRUCT, "task_struct", 8, &[("", 2, 0), ("", u32::MAX, u32::MAX), ("", 0, 0)])
            .add(TYPEDEF, "", 2, &[]);
        check_error(&typedef, "the kernel has no `task_struct.stack`");
    }

    #[test]
    fn damaged_files_are_errors() {
        let whole = kernel().bytes();
        for len in 0..whole.len() {
            assert!(locate(&whole[..len]).is_err(), "{len}");
        }
        // Each byte at its extremes: whatever comes of it, it ends.
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                let _ = locate(&damaged);
            }
        }
    }

    /// Where the kernel is built without BTF there is nothing to see.
    #[test]
    fn running_kernel_has_registers_where_they_must_be() {
        if !Path::new(KERNEL_BTF).exists() {
            return;
        }
        let location = pt_regs_location().unwrap();
        assert!(location.task_stack_offset.is_multiple_of(8), "{location:?}");
        assert!((8..4096).contains(&location.task_stack_offset), "{location:?}");
        let to_top = location.stack_to_regs.next_power_of_two() - location.stack_to_regs;
        assert!((168..=512).contains(&to_top), "{location:?}");
    }
}
