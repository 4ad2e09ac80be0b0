//! A control group with a limit on memory, in which the kernel ends what grows beyond it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How often it is tried to remove one: the kernel needs a moment after its last process.
const REMOVALS: usize = 100;

/// A group of its own, removed when it goes out of scope.
#[derive(Debug)]
pub struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    /// Makes one below the first hierarchy with a memory controller.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn create(limit_bytes: u64) -> io::Result<Self> {
        let (parent, limit) = hierarchy()?;
        let group = Self(parent.join(format!("everflame-test-{}", std::process::id())));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join(limit), limit_bytes.to_string())?;
        // Where there is no swap, there may be no such file either.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        let _ = fs::write(group.0.join("memory.swappiness"), "0");
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

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where groups are made, and the file with their limit.
fn hierarchy() -> io::Result<(PathBuf, &'static str)> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let found = mounts.lines().find_map(|mount| {
        let mut fields = mount.split(' ').skip(1);
        let (place, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let place = Path::new(place);
        let has = |list: &str, separator: char| list.split(separator).any(|name| name == "memory");
        match kind {
            "cgroup" if has(options, ',') => Some((place.to_owned(), "memory.limit_in_bytes")),
            "cgroup2" => {
                let enabled = fs::read_to_string(place.join("cgroup.subtree_control")).ok()?;
                has(enabled.trim(), ' ').then(|| (place.to_owned(), "memory.max"))
            }
            _ => None,
        }
    });
    found.ok_or_else(|| io::Error::other("no hierarchy of control groups has a memory controller"))
}
