//! Requests to disks, added up by stack, disk and how long they took.

use std::fmt;
use std::sync::Arc;

use everflame_agent_common::block::{DISK_NAME_LEN, Done, FAILED, Operation, SYNC};

use super::{Aggregator, IoKey, StackKey};
use crate::collect::{Io, Sample};
use crate::identity::ProcessIdentity;
use crate::process::Process;

/// What a disk is called, as in /sys/block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DiskName([u8; DISK_NAME_LEN]);

impl DiskName {
    /// A name; what is longer than the kernel allows is cut off.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; DISK_NAME_LEN];
        let len = name.len().min(DISK_NAME_LEN);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self(bytes)
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        match &self.0[..end] {
            // A disk that is gone has none.
            [] => f.write_str("unknown"),
            name => f.write_str(&String::from_utf8_lossy(name)),
        }
    }
}

/// What requests are told apart by, beside their stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// The disk; of files that were made durable, what their file system is on.
    pub disk: DiskName,
    /// What was done; `None` for files that were made durable.
    pub operation: Option<Operation>,
    /// Whether somebody waited for it.
    pub is_sync: bool,
    /// Whether it failed.
    pub has_failed: bool,
    /// The greatest power of two that the time in the queue is not below, in nanoseconds; 0 for none.
    pub queue: u64,
    /// The same of the time at the device, or of all the time that it took to make a file durable.
    pub device: u64,
}

/// Sums of equal requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockTotals {
    /// Completed requests, or files that were made durable.
    pub operations: u64,
    /// What was read or written.
    pub bytes: u64,
    /// From when a request is made to when it is issued, in nanoseconds.
    pub queue_ns: u64,
    /// From then to its end.
    pub device_ns: u64,
}

impl BlockTotals {
    fn add(&mut self, other: Self) {
        self.operations = self.operations.saturating_add(other.operations);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.queue_ns = self.queue_ns.saturating_add(other.queue_ns);
        self.device_ns = self.device_ns.saturating_add(other.device_ns);
    }

    fn times(self, count: u64) -> Self {
        Self {
            operations: self.operations.saturating_mul(count),
            bytes: self.bytes.saturating_mul(count),
            queue_ns: self.queue_ns.saturating_mul(count),
            device_ns: self.device_ns.saturating_mul(count),
        }
    }
}

/// The kernel's own name of the disk.
fn disk_of(done: &Done) -> DiskName {
    DiskName(done.disk_name)
}

/// What one sample says: how it is told apart, and what one of the requests that it stands for took.
pub(super) fn of_sample(sample: &Sample, file_system: DiskName) -> Option<(BlockKey, BlockTotals)> {
    let power = |ns: u64| if ns == 0 { 0 } else { 1 << ns.ilog2() };
    match *sample.io.as_deref()? {
        Io::Started(_) | Io::TcpStarted(_) | Io::Tcp(_) => None,
        Io::Done(done, end_ns) => {
            // What was never issued has only waited.
            let issue_ns = if done.issue_ns == 0 { end_ns } else { done.issue_ns };
            let queue_ns = issue_ns.saturating_sub(done.made_ns);
            let device_ns = end_ns.saturating_sub(issue_ns);
            let operation = done.operation();
            let key = BlockKey {
                disk: disk_of(&done),
                operation: Some(operation),
                is_sync: operation == Operation::Read || done.operation & SYNC != 0,
                has_failed: done.operation & FAILED != 0,
                queue: power(queue_ns),
                device: power(device_ns),
            };
            Some((key, BlockTotals { operations: 1, bytes: sample.value, queue_ns, device_ns }))
        }
        Io::Synced { .. } => {
            let device_ns = sample.value;
            let key = BlockKey {
                disk: file_system,
                operation: None,
                is_sync: true,
                has_failed: false,
                queue: 0,
                device: power(device_ns),
            };
            Some((key, BlockTotals { operations: 1, bytes: 0, queue_ns: 0, device_ns }))
        }
    }
}

impl Aggregator {
    /// Adds a request that has ended, or a file that was made durable; of that, `file_system` is what it is on.
    pub fn add_request(
        &mut self,
        mut sample: Sample,
        file_system: DiskName,
        process: &mut Process,
        identify: impl FnOnce(&mut Process) -> Arc<ProcessIdentity>,
    ) {
        let Some((block, totals)) = of_sample(&sample, file_system) else { return };
        let totals = totals.times(sample.count);
        self.window.blocks += 1;
        self.count(&sample);
        let index = self.process(sample.pid, process, identify);
        let key = StackKey { io: Some(IoKey::Block(block)), ..self.key(&mut sample, process) };
        let bytes = key.bytes() + size_of::<(Arc<StackKey>, BlockTotals)>();
        let known = &mut self.window.processes[index].blocks;
        if let Some(sum) = known.get_mut(&key) {
            return sum.add(totals);
        }
        self.window.stack_bytes += bytes;
        known.insert(Arc::new(key), totals);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_where_the_kernel_ends_them() {
        assert_eq!(DiskName::new("nvme0n1").to_string(), "nvme0n1");
        assert_eq!(DiskName::default().to_string(), "unknown");
        assert_eq!(DiskName::new(&"x".repeat(40)).to_string().len(), DISK_NAME_LEN);
    }
}
