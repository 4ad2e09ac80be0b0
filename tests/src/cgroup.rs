//! Control groups of a test's own: with a limit on memory, in which the kernel ends what grows beyond it, or on
//! reads of a disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How often it is tried to remove one: the kernel needs a moment after its last process.
const REMOVALS: usize = 100;

/// A group of its own, removed when it goes out of scope.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one below the first hierarchy with a memory controller.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn with_memory(limit_bytes: u64) -> io::Result<Self> {
        let hierarchy = Hierarchy::of("memory")?;
        let group = hierarchy.create("memory")?;
        let limit = if hierarchy.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(group.0.join(limit), limit_bytes.to_string())?;
        // Where there is no swap, there may be no such file either.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        let _ = fs::write(group.0.join("memory.swappiness"), "0");
        Ok(group)
    }

    /// Makes one that may make so many reads a second of a disk, by its numbers (`254:0`).
    ///
    /// # Errors
    /// Why there can be none.
    pub fn with_reads(device: &str, per_second: u64) -> io::Result<Self> {
        let hierarchy = Hierarchy::of("blkio").or_else(|_| Hierarchy::of("io"))?;
        let group = hierarchy.create("reads")?;
        let (file, limit) = if hierarchy.is_v2 {
            ("io.max", format!("{device} riops={per_second}"))
        } else {
            ("blkio.throttle.read_iops_device", format!("{device} {per_second}"))
        };
        fs::write(group.0.join(file), limit)?;
        Ok(group)
    }

    /// A command that runs a program in it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
            .arg(self.0.join("cgroup.procs"))
            .arg(program);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where groups are made.
struct Hierarchy {
    root: PathBuf,
    is_v2: bool,
}

impl Hierarchy {
    /// The first one with this controller.
    fn of(controller: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let found = mounts.lines().find_map(|mount| {
            let mut fields = mount.split(' ').skip(1);
            let (place, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let root = Path::new(place);
            let has =
                |list: &str, separator: char| list.split(separator).any(|name| name == controller);
            let is_v2 = kind == "cgroup2";
            let has_it = match kind {
                "cgroup" => has(options, ','),
                "cgroup2" => {
                    let enabled = fs::read_to_string(root.join("cgroup.subtree_control")).ok()?;
                    has(enabled.trim(), ' ')
                }
                _ => false,
            };
            has_it.then(|| Self { root: root.to_owned(), is_v2 })
        });
        let none = || format!("no hierarchy of control groups has a controller of {controller}");
        found.ok_or_else(|| io::Error::other(none()))
    }

    fn create(&self, name: &str) -> io::Result<Cgroup> {
        let group = format!("everflame-test-{name}-{}", std::process::id());
        let group = Cgroup(self.root.join(group));
        fs::create_dir(&group.0)?;
        Ok(group)
    }
}
