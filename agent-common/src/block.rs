//! Block I/O: requests to disks, from the code that wants something of a disk to their end.
//!
//! A request has three moments: it is made, in the context of the task that wants it; it is
//! issued to its device; and it is completed, in whatever the interrupt met. When it is made a
//! share of all requests is chosen, whose stacks are handed over at once
//! ([`Kind::BlockStart`](crate::event::Kind::BlockStart)); at the end comes a record without
//! stacks ([`Kind::BlockDone`](crate::event::Kind::BlockDone)), which says how long it took and
//! of what it was. The agent puts the two together.
//!
//! An operation is a completed request, as in /sys/block/DEVICE/stat. What the kernel merges into
//! one request is one operation, of the code that has begun it. A flush is an operation of its own,
//! of the code of the last write to that disk that wanted one.

use crate::event::DETAIL_WORDS;

/// What is kept of a request that was chosen, while it is under way; a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The kernel's address by which its start was reported; see [`Done::id`].
    pub id: u64,
    /// When its start was reported, on CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// When that was done, and it went on: to take a stack is not what it waits for.
    pub made_ns: u64,
    /// When it was last issued; 0 before.
    pub issue_ns: u64,
    /// What has been completed of it so far, in bytes.
    pub bytes: u64,
    /// What the kernel itself says, when it is issued, of when the request was made: another value if the
    /// memory is that of another request by now.
    pub stamp: u64,
    /// How many requests it stands for.
    pub count: u64,
}

const _: () = assert!(size_of::<Request>() == 56);

/// A write that is to be followed, or preceded, by a flush of its device; a map value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flusher {
    /// As of [`Request`].
    pub id: u64,
    /// Likewise.
    pub start_ns: u64,
}

/// Bytes of a disk's name (`DISK_NAME_LEN` of include/linux/blkdev.h).
pub const DISK_NAME_LEN: usize = 32;

/// Of a record's detail, those words that hold the disk's name.
pub const DISK_NAME_AT: usize = 5;

const _: () = assert!(DISK_NAME_AT * 8 + DISK_NAME_LEN <= DETAIL_WORDS * 8);

/// What a record of kind `BlockStart` says beside the common parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Started {
    /// As of [`Done`].
    pub id: u64,
    /// Likewise.
    pub start_ns: u64,
}

impl Started {
    /// As words for a record's header.
    #[inline(always)]
    pub fn to_detail(self) -> [u64; DETAIL_WORDS] {
        [self.id, self.start_ns, 0, 0, 0, 0, 0, 0, 0]
    }

    /// From words of a record's header.
    pub fn from_detail(detail: &[u64; DETAIL_WORDS]) -> Self {
        Self { id: detail[0], start_ns: detail[1] }
    }
}

/// What a record of kind `BlockDone` says. Its `value` is bytes, its time the end of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The kernel's address of the request, or of what it was made of: with `start_ns`, which
    /// [`Started`] belongs to it.
    pub id: u64,
    /// When that was reported, on CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// When it was made.
    pub made_ns: u64,
    /// When it was issued; 0 if it never was, as of a write of nothing that only asks for a flush.
    pub issue_ns: u64,
    /// The operation in the lowest 8 bits, `REQ_*` flags above (include/linux/blk_types.h); whether it
    /// has failed in the upper half.
    pub operation: u64,
    /// The disk's name, padded with zeros.
    pub disk_name: [u8; DISK_NAME_LEN],
}

/// In [`Done::operation`]: the request has failed.
pub const FAILED: u64 = 1 << 32;

/// In [`Done::operation`]: somebody waits for it. The kernel's own flag has another place in different
/// versions.
pub const SYNC: u64 = 1 << 33;

impl Done {
    /// From words of a record's header.
    pub fn from_detail(detail: &[u64; DETAIL_WORDS]) -> Self {
        let mut disk_name = [0; DISK_NAME_LEN];
        for (bytes, word) in disk_name.chunks_exact_mut(8).zip(&detail[DISK_NAME_AT..]) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self {
            id: detail[0],
            start_ns: detail[1],
            made_ns: detail[2],
            issue_ns: detail[3],
            operation: detail[4],
            disk_name,
        }
    }

    /// What it does to the disk.
    pub const fn operation(&self) -> Operation {
        Operation::of(self.operation)
    }
}

/// What requests do, as /sys/block/DEVICE/stat tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// From the disk.
    Read,
    /// To the disk; what clears blocks, too.
    Write,
    /// What the disk has in its cache becomes durable.
    Flush,
    /// Blocks are not needed any more.
    Discard,
}

impl Operation {
    /// By the kernel's number (`REQ_OP_*`), of which odd ones are writes.
    pub const fn of(operation: u64) -> Self {
        match operation & 0xff {
            2 => Self::Flush,
            3 => Self::Discard,
            number if number & 1 == 1 => Self::Write,
            _ => Self::Read,
        }
    }

    /// What it is called in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }
}

/// Operations from this number on are commands that programs give to devices themselves
/// (`REQ_OP_SCSI_IN` and `REQ_OP_DRV_IN`): the kernel does not count them either.
pub const FIRST_COMMAND: u32 = 32;

/// The kernel's number of a flush (`REQ_OP_FLUSH`).
pub const FLUSH: u32 = 2;

/// Where the kernel keeps what programs read of requests: offsets in its structures, in bytes, and bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockLayout {
    /// Not 0: requests are seen when they are made; otherwise what they are made of.
    pub has_io_start: u32,
    /// Of `request.cmd_flags`.
    pub flags_offset: u32,
    /// Of `request.rq_flags`.
    pub state_offset: u32,
    /// Of `request.__data_len`.
    pub bytes_offset: u32,
    /// Of `request.bio`.
    pub bio_offset: u32,
    /// Of `request.start_time_ns`.
    pub stamp_offset: u32,
    /// Of `request.q`.
    pub queue_offset: u32,
    /// Of `request.rq_disk`; 0 where it is the queue that knows the disk.
    pub disk_offset: u32,
    /// Of `request_queue.disk`; 0 where it is the request.
    pub queue_disk_offset: u32,
    /// Of `gendisk.disk_name`.
    pub name_offset: u32,
    /// Of `bio.bi_opf`.
    pub bio_flags_offset: u32,
    /// Of `bio.bi_disk`; 0 where it is a part of the disk that is known (Linux 5.12).
    pub bio_disk_offset: u32,
    /// Of `bio.bi_bdev`; 0 where it is the disk.
    pub bio_part_offset: u32,
    /// Of `block_device.bd_disk`.
    pub part_disk_offset: u32,
    /// In `request.rq_flags`: the request is a part of what a write with a flush consists of.
    pub flush_sequence: u32,
    /// In `request.cmd_flags`: somebody waits for it.
    pub sync: u32,
    /// In `request.cmd_flags`: the disk is to be flushed before it.
    pub preflush: u32,
    /// In `request.cmd_flags`: it is a write that may come with a flush, before or behind it.
    pub flushing: u32,
    /// Requests of which stacks are taken in a tenth of a second, on each CPU, at most.
    pub samples: u32,
    /// Always 0.
    pub padding: u32,
}

/// Words of a [`BlockLayout`].
pub const BLOCK_LAYOUT_WORDS: usize = 20;

const _: () = assert!(size_of::<BlockLayout>() == BLOCK_LAYOUT_WORDS * 4);

impl BlockLayout {
    /// Of programs that are not loaded.
    pub const NONE: Self = Self {
        has_io_start: 0,
        flags_offset: 0,
        state_offset: 0,
        bytes_offset: 0,
        bio_offset: 0,
        stamp_offset: 0,
        queue_offset: 0,
        disk_offset: 0,
        queue_disk_offset: 0,
        name_offset: 0,
        bio_flags_offset: 0,
        bio_disk_offset: 0,
        bio_part_offset: 0,
        part_disk_offset: 0,
        flush_sequence: 0,
        sync: 0,
        preflush: 0,
        flushing: 0,
        samples: 0,
        padding: 0,
    };

    /// All of it, in order.
    pub const fn words(&self) -> [u32; BLOCK_LAYOUT_WORDS] {
        [
            self.has_io_start,
            self.flags_offset,
            self.state_offset,
            self.bytes_offset,
            self.bio_offset,
            self.stamp_offset,
            self.queue_offset,
            self.disk_offset,
            self.queue_disk_offset,
            self.name_offset,
            self.bio_flags_offset,
            self.bio_disk_offset,
            self.bio_part_offset,
            self.part_disk_offset,
            self.flush_sequence,
            self.sync,
            self.preflush,
            self.flushing,
            self.samples,
            self.padding,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_told_apart_as_the_kernel_counts_them() {
        // REQ_OP_READ, WRITE, FLUSH, DISCARD, SECURE_ERASE, ZONE_APPEND, WRITE_ZEROES.
        let names = [0, 1, 2, 3, 5, 7, 9].map(|number| Operation::of(number).name());
        assert_eq!(names, ["read", "write", "flush", "discard", "write", "write", "write"]);
        assert_eq!(Operation::of(1 << 11 | SYNC), Operation::Read);
    }

    #[test]
    fn detail_of_the_end_has_a_name() {
        let mut detail = [1, 2, 3, 4, 1, 0, 0, 0, 0];
        detail[5] = u64::from_ne_bytes(*b"nvme0n1\0");
        let done = Done::from_detail(&detail);
        assert_eq!((done.id, done.start_ns, done.made_ns, done.issue_ns), (1, 2, 3, 4));
        assert_eq!(&done.disk_name[..8], b"nvme0n1\0");
    }
}
