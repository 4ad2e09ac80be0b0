//! What the kernel says of a map or a program in `/proc/self/fdinfo`.

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _};

/// A number by its name, such as `memlock`; `None` where this kernel does not have it.
pub(super) fn number(fd: impl AsFd, name: &str) -> Option<u64> {
    let fdinfo =
        fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).ok()?;
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok();
    fdinfo.lines().find_map(value)
}
