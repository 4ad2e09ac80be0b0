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

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom};

    use super::*;

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let mut file = tempfile::tempfile().unwrap();
        file.seek(SeekFrom::Start(17)).unwrap();
        assert_eq!(number(&file, "pos"), Some(17));
        assert_eq!(number(&file, "po"), None);
        assert_eq!(number(&file, "recursion_misses"), None, "it is no program");
    }
}
