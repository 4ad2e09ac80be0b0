//! What the samples of a profile of kind `block` say beside their stacks. Dashboards and scripts rely on
//! these names.

/// What happened, see [`Event`].
pub const EVENT: &str = "event";

/// The disk, as in /sys/block; of files that were made durable, what their file system is on.
pub const DEVICE: &str = "device";

/// `read`, `write`, `flush` or `discard`.
pub const OPERATION: &str = "operation";

/// Whether somebody waited for the request.
pub const SYNC: &str = "sync";

/// `true`: the kernel wrote what some process had written to a file before.
pub const WRITEBACK: &str = "writeback";

/// `true`: the request failed.
pub const FAILED: &str = "failed";

/// The greatest power of two that the time in the queue is not below, in nanoseconds.
pub const QUEUE_TIME: &str = "queue_time";

/// The same of the time at the device.
pub const DEVICE_TIME: &str = "device_time";

/// What a sample counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Requests to a disk.
    Request,
    /// Files that were made durable; all the time that took is `device_latency`.
    Sync,
}

impl Event {
    /// As [`EVENT`] has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Sync => "sync",
        }
    }
}
