//! Records in the ring buffer.
//!
//! A record is a [`SampleHeader`] followed by `kernel_frames` and then `user_frames`
//! addresses of 8 bytes, leaf first, in the byte order of the host. New kinds of profile
//! use the same record with another [`Kind`], and say what is particular to them in
//! [`SampleHeader::detail`].
//!
//! An address of a caller is its return address: one less lies in the instruction that
//! called. Of a function that a signal interrupted it is one more than its instruction
//! pointer, so that this holds for all but the leaf.
//!
//! A walk that meets a file whose rules are not loaded ([`Stop::NoTable`]) leaves a copy of
//! the stack behind the addresses, for which room is kept: the [`Registers`] of the frame
//! that it got to, whose address is the last one (at [`REGISTERS_AT`]), and `stack_bytes`
//! bytes from [`STACK_COPY_BELOW`] below its stack pointer on (at [`STACK_AT`]).
//!
//! [`STACK_COPY_BELOW`]: crate::limits::STACK_COPY_BELOW
//!
//! [`Stop::NoTable`]: crate::unwind::Stop::NoTable

use crate::limits::FRAME_SLOTS;
use crate::unwind::Registers;

/// Which profile a sample belongs to, in [`SampleHeader::kind`].
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// On-CPU time; [`SampleHeader::value`] is nanoseconds.
    Cpu = 1,
    /// A wait that has ended; [`SampleHeader::value`] is nanoseconds, the detail a
    /// [`Wait`](crate::wait::Wait).
    OffCpu = 2,
    /// A wait that goes on. There are no user addresses but that of the leaf.
    Waiting = 3,
    /// A lock was released; [`SampleHeader::value`] is nanoseconds that threads have waited for
    /// it, the detail a [`Release`](crate::lock::Release).
    Release = 4,
    /// A CPU has waited for a lock of the kernel without switching to another task; as `OffCpu`.
    Spinning = 5,
    /// A process has got more memory; [`SampleHeader::value`] is bytes, `count` pages, the first word
    /// of the detail a [`Backing`](crate::growth::Backing).
    Growth = 6,
    /// Memory has been asked for; [`SampleHeader::value`] is bytes, the detail that of an
    /// [`Allocation`](crate::allocation::Allocation).
    Allocation = 7,
    /// An object was sampled by the library in its process; [`SampleHeader::value`] is bytes, the
    /// detail an [`Allocated`](crate::live::Allocated).
    Allocated = 8,
    /// Such an object is about to be freed; the first word of the detail is its address. There are no
    /// stacks.
    Freed = 9,
    /// The kernel ends a process for want of memory. A header alone, about that process, which is
    /// mostly not the current one. `pid` is 0 where the kernel tells no more than a thread's id.
    OomVictim = 10,
    /// A request to a disk is made, of which there will be a record of the end; the detail is a
    /// [`Started`](crate::block::Started).
    BlockStart = 11,
    /// It is completed; [`SampleHeader::value`] is bytes, the detail a [`Done`](crate::block::Done). A
    /// header alone: what runs just then has nothing to do with it.
    BlockDone = 12,
    /// A file was made durable, by `fsync` or as a part of a write; [`SampleHeader::value`] is how long
    /// that took in nanoseconds, the first word of the detail the file system's device: its major number
    /// in the upper, its minor number in the lower half.
    Sync = 13,
    /// A connection is opened, or something is sent on one that will be told of later; the detail is a
    /// [`Started`](crate::tcp::Started).
    TcpStarted = 14,
    /// Something has happened to a connection; [`SampleHeader::value`] is a latency in nanoseconds, the detail a
    /// [`Happened`](crate::tcp::Happened). Mostly a header alone, about whoever opened or accepted it.
    Tcp = 15,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub const fn from_u16(kind: u16) -> Option<Self> {
        match kind {
            1 => Some(Self::Cpu),
            2 => Some(Self::OffCpu),
            3 => Some(Self::Waiting),
            4 => Some(Self::Release),
            5 => Some(Self::Spinning),
            6 => Some(Self::Growth),
            7 => Some(Self::Allocation),
            8 => Some(Self::Allocated),
            9 => Some(Self::Freed),
            10 => Some(Self::OomVictim),
            11 => Some(Self::BlockStart),
            12 => Some(Self::BlockDone),
            13 => Some(Self::Sync),
            14 => Some(Self::TcpStarted),
            15 => Some(Self::Tcp),
            _ => None,
        }
    }
}

/// Length of a thread's name, as in the kernel (`TASK_COMM_LEN`).
pub const THREAD_NAME_LEN: usize = 16;

/// The fixed part of a sample.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleHeader {
    /// When, on CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// What the sample stands for, in the unit of its kind.
    pub value: u64,
    /// Process id (the kernel's tgid) in the initial pid namespace.
    pub pid: u32,
    /// Thread id (the kernel's pid) in the initial pid namespace.
    pub tid: u32,
    /// Where it ran.
    pub cpu: u32,
    /// See [`Kind`].
    pub kind: u16,
    /// Number of kernel addresses that follow.
    pub kernel_frames: u16,
    /// Number of user addresses that follow the kernel's.
    pub user_frames: u16,
    /// Why the kernel stack ends where it does; see [`Stop`](crate::unwind::Stop).
    pub kernel_stop: u8,
    /// Why the user stack ends where it does.
    pub user_stop: u8,
    /// Bytes of the stack that follow. 0: neither stack nor registers do.
    pub stack_bytes: u32,
    /// The thread's name, padded with zeros.
    pub thread_name: [u8; THREAD_NAME_LEN],
    /// What the walk knew of the process's memory: all that was mapped until then, on
    /// CLOCK_MONOTONIC. 0: nothing.
    pub mapped_ns: u64,
    /// How many events the sample stands for.
    pub count: u64,
    /// What is particular to the kind.
    pub detail: [u64; DETAIL_WORDS],
}

/// Words of [`SampleHeader::detail`].
pub const DETAIL_WORDS: usize = 9;

const _: () = assert!(size_of::<SampleHeader>() == 144);
const _: () = assert!(size_of::<SampleHeader>().is_multiple_of(8));

impl SampleHeader {
    /// Size in bytes.
    pub const SIZE: usize = size_of::<Self>();

    /// Reads a header from the front of a record. `None` if the record is too short.
    pub fn read(record: &[u8]) -> Option<Self> {
        let bytes = record.get(..Self::SIZE)?;
        let mut thread_name = [0; THREAD_NAME_LEN];
        thread_name.copy_from_slice(&bytes[40..56]);
        let mut detail = [0; DETAIL_WORDS];
        for (word, value) in detail.iter_mut().zip(addresses(&bytes[72..])) {
            *word = value;
        }
        Some(Self {
            time_ns: u64_at(bytes, 0)?,
            value: u64_at(bytes, 8)?,
            pid: u32_at(bytes, 16)?,
            tid: u32_at(bytes, 20)?,
            cpu: u32_at(bytes, 24)?,
            kind: u16_at(bytes, 28)?,
            kernel_frames: u16_at(bytes, 30)?,
            user_frames: u16_at(bytes, 32)?,
            kernel_stop: *bytes.get(34)?,
            user_stop: *bytes.get(35)?,
            stack_bytes: u32_at(bytes, 36)?,
            thread_name,
            mapped_ns: u64_at(bytes, 56)?,
            count: u64_at(bytes, 64)?,
            detail,
        })
    }

    /// The addresses behind the header: the kernel's and the user's, leaf first. `None` if
    /// the record is shorter than its header says.
    pub fn stacks<'a>(
        &self,
        record: &'a [u8],
    ) -> Option<(impl Iterator<Item = u64> + 'a, impl Iterator<Item = u64> + 'a)> {
        let kernel_end = Self::SIZE + usize::from(self.kernel_frames) * 8;
        let user_end = kernel_end + usize::from(self.user_frames) * 8;
        let kernel = record.get(Self::SIZE..kernel_end)?;
        let user = record.get(kernel_end..user_end)?;
        Some((addresses(kernel), addresses(user)))
    }
}

/// Where the registers lie in a record with a copy of the stack.
pub const REGISTERS_AT: usize = SampleHeader::SIZE + FRAME_SLOTS * 8;

/// Where the copy of the stack lies.
pub const STACK_AT: usize = REGISTERS_AT + size_of::<Registers>();

/// A walk that stopped at code whose rules are not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackCopy<'a> {
    /// Of the frame that it got to.
    pub registers: Registers,
    /// Memory around and above `registers.sp`.
    pub stack: &'a [u8],
}

impl<'a> StackCopy<'a> {
    /// The copy behind a header, if there is one. `None` also for records that are too short.
    pub fn read(header: &SampleHeader, record: &'a [u8]) -> Option<Self> {
        let len = usize::try_from(header.stack_bytes).ok().filter(|len| *len > 0)?;
        let bytes = record.get(REGISTERS_AT..STACK_AT)?;
        let mut words = addresses(bytes);
        let (ip, sp, fp) = (words.next()?, words.next()?, words.next()?);
        let mut registers = Registers { ip, sp, fp, interrupted: words.next()?, general: [0; 32] };
        for (register, word) in registers.general.iter_mut().zip(words) {
            *register = word;
        }
        Some(Self { registers, stack: record.get(STACK_AT..STACK_AT.checked_add(len)?)? })
    }
}

fn addresses(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).filter_map(|address| u64_at(address, 0))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ([u8; SampleHeader::SIZE + 24], SampleHeader) {
        let header = SampleHeader {
            time_ns: 1,
            value: 2,
            pid: 3,
            tid: 4,
            cpu: 5,
            kind: 6,
            kernel_frames: 1,
            user_frames: 2,
            kernel_stop: 7,
            user_stop: 8,
            stack_bytes: 0,
            thread_name: *b"0123456789abcdef",
            mapped_ns: 9,
            count: 10,
            detail: [11, 12, 13, 14, 15, 16, 17, 18, 19],
        };
        let mut bytes = [0; SampleHeader::SIZE + 24];
        bytes[0..8].copy_from_slice(&1u64.to_ne_bytes());
        bytes[8..16].copy_from_slice(&2u64.to_ne_bytes());
        bytes[16..20].copy_from_slice(&3u32.to_ne_bytes());
        bytes[20..24].copy_from_slice(&4u32.to_ne_bytes());
        bytes[24..28].copy_from_slice(&5u32.to_ne_bytes());
        bytes[28..30].copy_from_slice(&6u16.to_ne_bytes());
        bytes[30..32].copy_from_slice(&1u16.to_ne_bytes());
        bytes[32..34].copy_from_slice(&2u16.to_ne_bytes());
        bytes[56..64].copy_from_slice(&9u64.to_ne_bytes());
        for (at, word) in (10..20u64).enumerate() {
            bytes[64 + at * 8..72 + at * 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes[34] = 7;
        bytes[35] = 8;
        bytes[40..56].copy_from_slice(b"0123456789abcdef");
        for (slot, address) in [0xffff_ffff_8100_0000u64, 0x1000, 0x2000].into_iter().enumerate() {
            bytes[SampleHeader::SIZE + slot * 8..][..8].copy_from_slice(&address.to_ne_bytes());
        }
        (bytes, header)
    }

    #[test]
    fn read_takes_fields_where_repr_c_puts_them() {
        let (bytes, header) = record();
        assert_eq!(SampleHeader::read(&bytes), Some(header));
        assert_eq!(core::mem::offset_of!(SampleHeader, kind), 28);
        assert_eq!(core::mem::offset_of!(SampleHeader, thread_name), 40);
    }

    #[test]
    fn stacks_are_kernel_then_user() {
        let (bytes, header) = record();
        let (kernel, user) = header.stacks(&bytes).unwrap();
        assert!(kernel.eq([0xffff_ffff_8100_0000]));
        assert!(user.eq([0x1000, 0x2000]));
    }

    #[test]
    fn copy_of_the_stack_is_where_the_programs_put_it() {
        let mut record = [0; STACK_AT + 16];
        for (at, word) in record[REGISTERS_AT..].chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(at as u64 + 1).to_ne_bytes());
        }
        let header = SampleHeader { stack_bytes: 16, ..SampleHeader::default() };
        let copy = StackCopy::read(&header, &record).unwrap();
        let registers = copy.registers;
        assert_eq!((registers.ip, registers.sp, registers.fp, registers.interrupted), (1, 2, 3, 4));
        assert_eq!((registers.general[0], registers.general[31]), (5, 36));
        assert_eq!(copy.stack, &record[STACK_AT..]);
        assert_eq!(StackCopy::read(&header, &record[..STACK_AT + 15]), None);
        assert_eq!(StackCopy::read(&SampleHeader::default(), &record), None);
    }

    #[test]
    fn short_records_are_refused() {
        let (bytes, header) = record();
        assert_eq!(SampleHeader::read(&bytes[..127]), None);
        assert!(header.stacks(&bytes[..bytes.len() - 1]).is_none());
    }
}
