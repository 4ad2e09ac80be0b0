//! What disks are called.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::aggregate::DiskName;

/// Devices that are remembered.
const MAX_KNOWN: usize = 1024;

/// Names of devices by their numbers, as /sys has them.
#[derive(Debug, Default)]
pub struct Disks {
    known: HashMap<(u32, u32), DiskName>,
}

impl Disks {
    /// The name of a device: `sda1`, `dm-0`; its numbers where it has none, as file systems have that
    /// are on several disks, or on none.
    pub fn name(&mut self, major: u32, minor: u32) -> DiskName {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        *self.known.entry((major, minor)).or_insert_with(|| find(major, minor))
    }

    /// Numbers may be given to others: forgets all names.
    pub fn forget(&mut self) {
        self.known.clear();
    }
}

fn find(major: u32, minor: u32) -> DiskName {
    let numbers = format!("{major}:{minor}");
    let target = fs::read_link(Path::new("/sys/dev/block").join(&numbers));
    let name = target.ok().and_then(|target| Some(target.file_name()?.to_str()?.to_owned()));
    DiskName::new(&name.unwrap_or(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_names_and_others_numbers() {
        let mut disks = Disks::default();
        for entry in fs::read_dir("/sys/dev/block").unwrap() {
            let entry = entry.unwrap();
            let numbers = entry.file_name().into_string().unwrap();
            let (major, minor) = numbers.split_once(':').unwrap();
            let name = disks.name(major.parse().unwrap(), minor.parse().unwrap());
            let device = fs::canonicalize(entry.path()).unwrap();
            assert_eq!(Some(name.to_string().as_str()), device.file_name().unwrap().to_str());
        }
        assert_eq!(disks.name(0, 4711).to_string(), "0:4711");
    }
}
