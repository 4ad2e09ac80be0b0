//! What runs already, read from /proc: at the start, and again when records were lost.
//!
//! The side-band is opened first, so whatever changes while /proc is read is seen there and
//! replayed on top.

use std::fs;
use std::io;
use std::path::Path;

use super::{MappedMemory, Mapping, ObjectCache};
use crate::identity::parse_stat;

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

/// Process ids that /proc shows now.
pub fn running_pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// Reads one process. `None` if it is gone by now.
pub fn seed(pid: u32, objects: &mut ObjectCache) -> Option<SeededProcess> {
    let dir = Path::new("/proc").join(pid.to_string());
    let (name, kernel_thread) = parse_stat(&fs::read(dir.join("stat")).ok()?)?;
    // Not UTF-8 as a whole: each path is bytes of the process's choice.
    let maps = fs::read(dir.join("maps")).unwrap_or_default();
    let mappings = maps
        .split(|byte| *byte == b'\n')
        .filter_map(|line| parse(pid, line))
        .filter(|line| line.is_executable)
        .map(|line| Mapping::open(line.memory, objects))
        .collect();
    let executable = fs::read_link(dir.join("exe"))
        .ok()
        .map(|path| path.to_string_lossy().trim_end_matches(" (deleted)").to_owned());
    Some(SeededProcess { pid, name: name.unwrap_or_default(), kernel_thread, mappings, executable })
}

/// The executable memory of a process, as ranges of addresses. `None` if it is gone by now, or
/// on its way.
pub fn executable_ranges(pid: u32) -> Option<Vec<(u64, u64)>> {
    let memory = all_memory(pid)?;
    let executable = memory.into_iter().filter(|line| line.is_executable);
    let range = |line: MapsLine| (line.memory.start_avma, line.memory.end_avma);
    let ranges: Vec<_> = executable.map(range).collect();
    (!ranges.is_empty()).then_some(ranges)
}

/// All memory of a process, in order of address. `None` if it is gone by now, or on its way.
pub(super) fn all_memory(pid: u32) -> Option<Vec<MapsLine>> {
    let maps = fs::read(Path::new("/proc").join(pid.to_string()).join("maps")).ok()?;
    let lines = maps.split(|byte| *byte == b'\n');
    let memory: Vec<_> = lines.filter_map(|line| parse(pid, line)).collect();
    // A process that has given up its memory is still listed.
    (!memory.is_empty()).then_some(memory)
}

/// The CPU time of all of a process's threads, in ticks of the kernel (10 ms). `None` if it is
/// gone by now.
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    parse_cpu_ticks(&fs::read(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?)
}

/// Fields 14 and 15 of /proc/PID/stat (proc_pid_stat(5)). The second is a name, which may have
/// any byte in it, in brackets.
fn parse_cpu_ticks(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = str::from_utf8(&stat[name_end + 1..]).ok()?;
    let mut times = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    user.checked_add(system)
}

/// Whether a process whose main thread has ended goes on in others. Its main thread is still
/// listed; alone it is a zombie that nobody has waited for.
pub fn has_other_threads(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.take(2).count() > 1)
}

/// A line of /proc/PID/maps.
pub(super) struct MapsLine {
    pub(super) memory: MappedMemory,
    pub(super) is_executable: bool,
}

/// Reads a line of /proc/PID/maps (proc_pid_maps(5)):
///
/// ```text
/// 55d4c2a00000-55d4c2a21000 r-xp 00002000 fe:01 1234      /usr/bin/cat
/// ```
fn parse(pid: u32, line: &[u8]) -> Option<MapsLine> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let file_offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode: u64 = fields.next()?.parse().ok()?;
    let path = fields.next().unwrap_or_default().trim_start();
    let memory = MappedMemory {
        pid,
        start_avma: u64::from_str_radix(start, 16).ok()?,
        end_avma: u64::from_str_radix(end, 16).ok()?,
        file_offset,
        path: path.to_owned(),
        build_id: None,
        inode: (inode != 0).then_some((device, inode)),
    };
    Some(MapsLine { memory, is_executable: permissions.contains('x') })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Backing;

    #[test]
    fn seed_finds_this_process_and_its_executable() {
        let mut objects = ObjectCache::default();
        assert!(running_pids().unwrap().any(|pid| pid == std::process::id()));
        let this = seed(std::process::id(), &mut objects).unwrap();
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

    #[test]
    fn cpu_time_is_that_of_user_and_kernel() {
        let stat = b"7 (a) b 9 (c) R 1 2 3 4 5 6 7 8 9 10 120 3 99 98 20 0 1 0 5\n";
        assert_eq!(parse_cpu_ticks(stat), Some(123));
        assert_eq!(parse_cpu_ticks(b"7 (a) R 1 2"), None);
        assert!(cpu_ticks(std::process::id()).is_some());
        assert_eq!(cpu_ticks(u32::MAX), None);
    }

    #[test]
    fn maps_lines_are_read_whatever_the_path_is_made_of() {
        let line = b"1000-3000 r-xp 00002000 fe:01 77                    /srv/b\xffd dir/prog";
        let MapsLine { memory, is_executable } = parse(5, line).unwrap();
        assert!(is_executable);
        assert_eq!(
            (memory.start_avma, memory.end_avma, memory.file_offset),
            (0x1000, 0x3000, 0x2000)
        );
        assert_eq!(memory.inode, Some(((0xfe, 1), 77)));
        assert_eq!(memory.path, "/srv/b\u{fffd}d dir/prog");
        let data = parse(5, b"1000-3000 rw-p 00002000 fe:01 77 /srv/prog").unwrap();
        assert!(!data.is_executable);
        let anonymous = parse(5, b"1000-3000 rwxp 00000000 00:00 0 ").unwrap().memory;
        assert_eq!((anonymous.path.as_str(), anonymous.inode), ("", None));
        assert!(parse(5, b"").is_none());
    }
}
