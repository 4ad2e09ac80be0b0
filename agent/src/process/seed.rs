//! What ran before the agent started, read from /proc once.
//!
//! The side-band is opened first, so whatever changes while /proc is read is seen there and
//! replayed on top.

use std::fs;

use procfs::ProcError;
use procfs::process::{MMPermissions, MMapPath, Process, StatFlags};
use tracing::debug;

use super::{MappedMemory, Mapping, ObjectCache};

/// A process as /proc shows it.
#[derive(Clone, Debug)]
pub struct SeededProcess {
    /// Process id.
    pub pid: u32,
    /// The main thread's name.
    pub name: String,
    /// Whether it is a thread of the kernel.
    pub kernel_thread: bool,
    /// Its executable memory.
    pub mappings: Vec<Mapping>,
    /// The path of its executable, as it sees it.
    pub executable: Option<String>,
}

/// Reads all processes. Those that vanish meanwhile are left out.
pub fn seed(objects: &mut ObjectCache) -> Result<Vec<SeededProcess>, ProcError> {
    let mut seeded = Vec::new();
    for process in procfs::process::all_processes()? {
        let read = process.and_then(|process| read(&process, objects));
        match read {
            Ok(process) => seeded.push(process),
            Err(error) => debug!(%error, "process vanished while it was read"),
        }
    }
    Ok(seeded)
}

fn read(process: &Process, objects: &mut ObjectCache) -> Result<SeededProcess, ProcError> {
    let pid = process.pid().unsigned_abs();
    let stat = process.stat()?;
    let flags = StatFlags::from_bits_truncate(stat.flags);
    let mut mappings = Vec::new();
    for map in process.maps()? {
        if !map.perms.contains(MMPermissions::EXECUTE) {
            continue;
        }
        let memory = MappedMemory {
            pid,
            start_avma: map.address.0,
            end_avma: map.address.1,
            file_offset: map.offset,
            path: path_of(&map.pathname),
            build_id: None,
            inode: (map.inode != 0)
                .then(|| ((map.dev.0.unsigned_abs(), map.dev.1.unsigned_abs()), map.inode)),
        };
        mappings.push(Mapping::open(memory, objects));
    }
    let executable = fs::read_link(format!("/proc/{pid}/exe"))
        .ok()
        .map(|path| path.to_string_lossy().trim_end_matches(" (deleted)").to_owned());
    Ok(SeededProcess {
        pid,
        name: stat.comm,
        kernel_thread: flags.contains(StatFlags::PF_KTHREAD),
        mappings,
        executable,
    })
}

fn path_of(path: &MMapPath) -> String {
    match path {
        MMapPath::Path(path) => path.to_string_lossy().into_owned(),
        MMapPath::Vdso => "[vdso]".to_owned(),
        MMapPath::Vsyscall => "[vsyscall]".to_owned(),
        MMapPath::Heap => "[heap]".to_owned(),
        MMapPath::Stack | MMapPath::TStack(_) => "[stack]".to_owned(),
        MMapPath::Anonymous => String::new(),
        MMapPath::Other(name) => format!("[{name}]"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Backing;

    #[test]
    fn seed_finds_this_process_and_its_executable() {
        let mut objects = ObjectCache::default();
        let seeded = seed(&mut objects).unwrap();
        let this = seeded.iter().find(|process| process.pid == std::process::id()).unwrap();
        let executable = std::env::current_exe().unwrap();
        assert_eq!(this.executable.as_deref(), executable.to_str());
        assert!(!this.kernel_thread);
        let code = seed_finds_this_process_and_its_executable as *const () as u64;
        let mapping = this
            .mappings
            .iter()
            .find(|mapping| (mapping.start_avma..mapping.end_avma).contains(&code))
            .unwrap();
        let Backing::Object(object) = &mapping.backing else { panic!("code lies in a file") };
        assert_eq!(Some(object.path.as_str()), executable.to_str());
        assert!(object.build_id.is_some());
    }
}
