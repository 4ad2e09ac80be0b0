//! Where the running kernel keeps what the programs read of requests to disks.

use everflame_agent_common::block::BlockLayout;

use super::{Btf, BtfError, read_kernel_types};

/// Where the device of a file's file system is found, for what file systems tell of their work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLocation {
    /// Bytes from an `inode` to its pointer to a `super_block`.
    pub superblock_offset: u32,
    /// Bytes from a `super_block` to the number of its device.
    pub device_offset: u32,
}

/// Which of the programs fit the running kernel's tracepoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockTracepoints {
    /// It tells of requests when they are made (`block_io_start`, Linux 6.5).
    pub has_io_start: bool,
    /// The first argument of `block_getrq` is a queue (before 5.11).
    pub getrq_has_queue: bool,
    /// The same of `block_rq_issue`; updates of 5.10 have changed that one.
    pub issue_has_queue: bool,
}

/// Before Linux 6.11 the flag was a macro, which types do not tell of.
const OLD_FLUSH_SEQUENCE: u32 = 1 << 4;

/// Asks the running kernel. How many samples are taken is left to the caller.
///
/// # Errors
/// When it does not show its types, or they are not as expected.
pub fn block_layout() -> Result<(BlockLayout, BlockTracepoints), BtfError> {
    let bytes = read_kernel_types()?;
    let btf = Btf::parse(&bytes)?;
    let offset = |of, member, name| btf.offset(of, member).ok_or(BtfError::Missing { name });
    let flag = |name| btf.enumerator(name).map(|bit| 1u32 << (bit & 31));
    let missing = |name| BtfError::Missing { name };
    let arguments = |name| btf.tracepoint(name).map(|arguments| arguments.len());
    let issue = arguments("block_rq_issue").ok_or(missing("block_rq_issue"))?;
    let getrq = arguments("block_getrq").ok_or(missing("block_getrq"))?;
    let disk = btf.offset("request", "rq_disk");
    let queue_disk = btf.offset("request_queue", "disk");
    if disk.or(queue_disk).is_none() {
        return Err(missing("request_queue.disk"));
    }
    let flush = flag("__REQ_PREFLUSH").ok_or(missing("__REQ_PREFLUSH"))?;
    let tracepoints = BlockTracepoints {
        has_io_start: arguments("block_io_start").is_some(),
        getrq_has_queue: getrq > 1,
        issue_has_queue: issue > 1,
    };
    let layout = BlockLayout {
        has_io_start: u32::from(tracepoints.has_io_start),
        flags_offset: offset("request", "cmd_flags", "request.cmd_flags")?,
        state_offset: offset("request", "rq_flags", "request.rq_flags")?,
        bytes_offset: offset("request", "__data_len", "request.__data_len")?,
        bio_offset: offset("request", "bio", "request.bio")?,
        stamp_offset: offset("request", "start_time_ns", "request.start_time_ns")?,
        queue_offset: offset("request", "q", "request.q")?,
        disk_offset: disk.unwrap_or(0),
        queue_disk_offset: queue_disk.unwrap_or(0),
        name_offset: offset("gendisk", "disk_name", "gendisk.disk_name")?,
        bio_flags_offset: offset("bio", "bi_opf", "bio.bi_opf")?,
        bio_disk_offset: btf.offset("bio", "bi_disk").unwrap_or(0),
        bio_part_offset: btf.offset("bio", "bi_bdev").unwrap_or(0),
        part_disk_offset: offset("block_device", "bd_disk", "block_device.bd_disk")?,
        flush_sequence: flag("__RQF_FLUSH_SEQ").unwrap_or(OLD_FLUSH_SEQUENCE),
        sync: flag("__REQ_SYNC").ok_or(missing("__REQ_SYNC"))?,
        preflush: flush,
        flushing: flush | flag("__REQ_FUA").ok_or(missing("__REQ_FUA"))?,
        samples: 0,
        padding: 0,
    };
    Ok((layout, tracepoints))
}

/// Asks the running kernel.
///
/// # Errors
/// When it does not show its types, or they are not as expected.
pub fn file_location() -> Result<FileLocation, BtfError> {
    let bytes = read_kernel_types()?;
    let btf = Btf::parse(&bytes)?;
    let offset = |of, member, name| btf.offset(of, member).ok_or(BtfError::Missing { name });
    Ok(FileLocation {
        superblock_offset: offset("inode", "i_sb", "inode.i_sb")?,
        device_offset: offset("super_block", "s_dev", "super_block.s_dev")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_kernel_says_where_things_are() {
        let (layout, _) = block_layout().unwrap();
        // Members of their own; three bits and one.
        assert_ne!(layout.flags_offset, layout.state_offset);
        assert_eq!(layout.flushing.count_ones(), 2);
        assert_eq!(layout.sync.count_ones(), 1);
        assert_eq!(layout.flush_sequence.count_ones(), 1);
        assert_ne!(file_location().unwrap().device_offset, 0);
    }
}
