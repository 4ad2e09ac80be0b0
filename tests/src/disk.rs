//! What the kernel itself counts of disks.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A disk, as in /sys/block.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What it is called.
    pub name: String,
    stat: PathBuf,
}

/// Completed requests and their bytes, since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStat {
    /// Completed requests: reads, writes, discards and flushes.
    pub ops: [u64; 4],
    /// Bytes of reads, writes and discards.
    pub bytes: [u64; 3],
}

impl DiskStat {
    /// What happened since then.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            ops: std::array::from_fn(|at| self.ops[at] - before.ops[at]),
            bytes: std::array::from_fn(|at| self.bytes[at] - before.bytes[at]),
        }
    }

    /// Of all kinds.
    pub fn total_ops(&self) -> u64 {
        self.ops.iter().sum()
    }

    /// Of all kinds.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }
}

impl Disk {
    /// The disk that a file lies on, the whole of it, even if it has partitions.
    pub fn under(path: &Path) -> Self {
        let device = fs::metadata(path).expect("a file").dev();
        let numbers = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let link = Path::new("/sys/dev/block").join(&numbers);
        let link = fs::canonicalize(&link).unwrap_or_else(|error| {
            panic!("{} is not on a disk ({numbers}): {error}", path.display())
        });
        let disk = if link.join("partition").exists() { link.parent() } else { Some(&*link) };
        Self::at(disk.expect("a partition is within a disk"))
    }

    /// The disk of this name.
    pub fn named(name: &str) -> Self {
        Self::at(&Path::new("/sys/block").join(name))
    }

    fn at(dir: &Path) -> Self {
        let name = dir.file_name().and_then(|name| name.to_str()).expect("disks have names");
        Self { name: name.to_owned(), stat: dir.join("stat") }
    }

    /// Its numbers, as in `254:0`.
    pub fn numbers(&self) -> String {
        let path = self.stat.with_file_name("dev");
        fs::read_to_string(path).expect("a disk has numbers").trim().to_owned()
    }

    /// Reads the counters (Documentation/block/stat.rst of the kernel).
    pub fn stat(&self) -> DiskStat {
        let text = fs::read_to_string(&self.stat).expect("a disk has counters");
        let fields: Vec<u64> =
            text.split_ascii_whitespace().map(|field| field.parse().expect("a number")).collect();
        let field = |at: usize| fields.get(at).copied().unwrap_or(0);
        const SECTOR: u64 = 512;
        DiskStat {
            ops: [field(0), field(4), field(11), field(15)],
            bytes: [field(2) * SECTOR, field(6) * SECTOR, field(13) * SECTOR],
        }
    }
}
