//! Opens mapped files once and shares them among all processes that map them.
//!
//! An entry lives as long as some mapping or some sample that waits to be symbolised uses
//! its file, so the number of open files follows what runs.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Weak};

use object::read::elf::{FileHeader as _, NoteIterator, ProgramHeader as _};
use object::{Endianness, elf};
use tracing::debug;

use super::{Backing, MappedMemory};
use crate::object::{BuildId, ObjectFile, ObjectKind};

/// Entries between two sweeps for files that nothing uses any more.
const SWEEP_AFTER: usize = 256;

/// Names of memory that holds generated code.
const ANONYMOUS_PREFIXES: [&str; 5] = ["//anon", "[anon", "[heap]", "[stack", "/dev/zero"];

/// Memory that has a name but no place in a file system: an executable that runs from it, or
/// what a runtime generates.
const MEMFD_PREFIX: &str = "/memfd:";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// With the path: copies of a binary under several names keep their names.
    BuildId(BuildId, String),
    /// With the path as well: on btrfs, inodes of different subvolumes look alike.
    Inode((u32, u32), u64, String),
    Path(String),
}

/// What the cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectStats {
    /// Files opened.
    pub opened: u64,
    /// Files that could not be opened any more.
    pub failed: u64,
    /// Files that were left closed because too many are open.
    pub over_limit: u64,
    /// Files in use.
    pub live: u64,
}

/// Every file that code is mapped from.
#[derive(Debug, Default)]
pub struct ObjectCache {
    by_key: HashMap<Key, Weak<ObjectFile>>,
    vdso: Option<Arc<ObjectFile>>,
    open_files: Vec<Weak<ObjectFile>>,
    sweep_at: usize,
    stats: ObjectStats,
}

impl ObjectCache {
    /// What memory is made of; opens its file when it is a new one.
    pub fn backing(&mut self, memory: &MappedMemory) -> Backing {
        let path = memory.path.as_str();
        if path == "[vdso]" {
            return Backing::Object(Arc::clone(self.vdso.get_or_insert_with(|| {
                Arc::new(ObjectFile {
                    path: path.to_owned(),
                    build_id: None,
                    kind: ObjectKind::Vdso,
                })
            })));
        }
        if path.is_empty() || ANONYMOUS_PREFIXES.iter().any(|prefix| path.starts_with(prefix)) {
            return Backing::Anonymous;
        }
        if path.starts_with(MEMFD_PREFIX) && memory.build_id.is_none() {
            // The kernel gives a build id to whatever is an ELF file; without one it may
            // still be one on a kernel that gives none.
            if !open_mapped(memory).is_some_and(|file| is_elf(&file)) {
                return Backing::Anonymous;
            }
        }
        if !path.starts_with('/') {
            let opaque =
                ObjectFile { path: path.to_owned(), build_id: None, kind: ObjectKind::Opaque };
            return Backing::Object(self.share(Key::Path(path.to_owned()), opaque));
        }
        Backing::Object(self.file(memory))
    }

    /// What the cache has done so far.
    pub fn stats(&self) -> ObjectStats {
        let live = self.open_files.iter().filter(|object| object.strong_count() > 0).count();
        ObjectStats { live: live as u64, ..self.stats }
    }

    /// Whether another file may be opened: half of what the process may open is left for
    /// everything else.
    fn has_room(&mut self) -> bool {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = usize::try_from(limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX) / 2;
        if self.open_files.len() >= limit {
            self.open_files.retain(|object| object.strong_count() > 0);
        }
        self.open_files.len() < limit
    }

    fn file(&mut self, memory: &MappedMemory) -> Arc<ObjectFile> {
        let by_build_id = |build_id| Key::BuildId(build_id, memory.path.clone());
        let known = memory.build_id.map(by_build_id).or_else(|| {
            let (device, inode) = memory.inode?;
            Some(Key::Inode(device, inode, memory.path.clone()))
        });
        if let Some(object) = known.as_ref().and_then(|key| self.get(key)) {
            return object;
        }
        let has_room = self.has_room();
        let file = has_room.then(|| open_mapped(memory)).flatten();
        match &file {
            Some(_) => self.stats.opened += 1,
            None if !has_room => self.stats.over_limit += 1,
            None => {
                self.stats.failed += 1;
                debug!(pid = memory.pid, path = memory.path, "mapped file is gone");
            }
        }
        let build_id = memory.build_id.or_else(|| read_build_id(file.as_ref()?));
        let object = ObjectFile {
            path: memory.path.trim_end_matches(" (deleted)").to_owned(),
            build_id,
            kind: ObjectKind::Elf { file },
        };
        // A file that could not be opened is asked for again by the next process.
        if matches!(object.kind, ObjectKind::Elf { file: None }) {
            return Arc::new(object);
        }
        // Known by inode at first, by build id from later records: one object for both.
        let by_build_id = build_id.map(by_build_id);
        let object = match by_build_id.as_ref().and_then(|key| self.get(key)) {
            Some(object) => object,
            None => {
                let object = Arc::new(object);
                self.open_files.push(Arc::downgrade(&object));
                object
            }
        };
        for key in [known, by_build_id].into_iter().flatten() {
            self.insert(key, &object);
        }
        object
    }

    fn get(&self, key: &Key) -> Option<Arc<ObjectFile>> {
        self.by_key.get(key)?.upgrade()
    }

    fn share(&mut self, key: Key, object: ObjectFile) -> Arc<ObjectFile> {
        if let Some(object) = self.get(&key) {
            return object;
        }
        let object = Arc::new(object);
        self.insert(key, &object);
        object
    }

    fn insert(&mut self, key: Key, object: &Arc<ObjectFile>) {
        self.by_key.insert(key, Arc::downgrade(object));
        if self.by_key.len() >= self.sweep_at {
            self.open_files.retain(|object| object.strong_count() > 0);
            self.by_key.retain(|_, object| object.strong_count() > 0);
            self.sweep_at = self.by_key.len() * 2 + SWEEP_AFTER;
        }
    }
}

/// Opens the very file that is mapped, whatever happened to its name.
///
/// `map_files` leads to the inode itself, even when it is deleted or lies in another mount
/// namespace, but needs CAP_CHECKPOINT_RESTORE and a living process. Any of these ways can
/// lead to another file by now, so where the kernel told a build id it must agree.
fn open_mapped(memory: &MappedMemory) -> Option<File> {
    let MappedMemory { pid, start_avma, end_avma, path, build_id, .. } = memory;
    let agrees = |file: &File| build_id.is_none_or(|id| read_build_id(file) == Some(id));
    open_regular(&format!("/proc/{pid}/map_files/{start_avma:x}-{end_avma:x}"))
        .filter(agrees)
        .or_else(|| {
            [format!("/proc/{pid}/root{path}"), path.clone()].iter().find_map(|path| {
                let file = open_regular(path)?;
                let same = build_id.is_some() || same_inode(&file, memory);
                (same && agrees(&file)).then_some(file)
            })
        })
}

fn is_elf(file: &File) -> bool {
    read_at(file, 0, 4).is_some_and(|magic| magic == elf::ELFMAG)
}

/// Never blocks on a FIFO that has taken the place of a file.
fn open_regular(path: &str) -> Option<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

fn same_inode(file: &File, memory: &MappedMemory) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let Some((_, inode)) = memory.inode else { return false };
    // The device of a mapping and of its file differ on overlay and btrfs, the inode does
    // not.
    file.metadata().is_ok_and(|metadata| metadata.ino() == inode)
}

/// The beginning of an ELF file, with all of its program headers.
pub(super) fn read_program_headers(file: &File) -> Option<Vec<u8>> {
    type Header = elf::FileHeader64<Endianness>;
    const FIRST_READ: u64 = 4096;
    const MAX_HEADERS: u64 = 64 * 1024;

    let head = read_at(file, 0, FIRST_READ)?;
    let header = Header::parse(&*head).ok()?;
    let endian = header.endian().ok()?;
    let headers = u64::from(header.e_phnum(endian)) * u64::from(header.e_phentsize(endian));
    let headers_end = header.e_phoff(endian).checked_add(headers)?;
    match headers_end {
        end if end <= head.len() as u64 => Some(head),
        end if end <= MAX_HEADERS => read_at(file, 0, end),
        _ => None,
    }
}

/// Reads the build id note of an ELF file, through its program headers.
fn read_build_id(file: &File) -> Option<BuildId> {
    type Header = elf::FileHeader64<Endianness>;
    const MAX_NOTES: u64 = 64 * 1024;

    let head = read_program_headers(file)?;
    let endian = Header::parse(&*head).ok()?.endian().ok()?;
    let header = Header::parse(&*head).ok()?;
    for segment in header.program_headers(endian, &*head).ok()? {
        if segment.p_type(endian) != elf::PT_NOTE || segment.p_filesz(endian) > MAX_NOTES {
            continue;
        }
        let notes = read_at(file, segment.p_offset(endian), segment.p_filesz(endian))?;
        if let Some(build_id) = build_id_of_notes(&notes, segment.p_align(endian)) {
            return Some(build_id);
        }
    }
    None
}

/// Finds the build id among notes that are aligned to `align` bytes.
fn build_id_of_notes(notes: &[u8], align: u64) -> Option<BuildId> {
    type Header = elf::FileHeader64<Endianness>;
    let endian = Endianness::default();
    let notes = NoteIterator::<Header>::new(endian, align, notes).ok()?;
    notes
        .filter_map(Result::ok)
        .find(|note| {
            note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID
        })
        .and_then(|note| BuildId::new(note.desc()))
}

/// The build id of the running kernel.
pub fn kernel_build_id() -> Option<BuildId> {
    build_id_of_notes(&std::fs::read("/sys/kernel/notes").ok()?, 4)
}

/// Up to `len` bytes from `offset` on, without moving the file's position.
fn read_at(file: &File, offset: u64, len: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    let read = file.read_at(&mut bytes, offset).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(path: &str) -> MappedMemory {
        MappedMemory {
            pid: std::process::id(),
            start_avma: 0,
            end_avma: 0x1000,
            file_offset: 0,
            path: path.to_owned(),
            build_id: None,
            inode: None,
        }
    }

    fn own_executable() -> MappedMemory {
        let path = std::env::current_exe().unwrap();
        let build_id = read_build_id(&File::open(&path).unwrap());
        assert!(build_id.is_some(), "rustc links with a build id on Linux");
        MappedMemory { build_id, ..memory(path.to_str().unwrap()) }
    }

    #[test]
    fn file_is_opened_once_for_all_that_map_it() {
        let mut objects = ObjectCache::default();
        let memory = own_executable();
        let (Backing::Object(first), Backing::Object(second)) =
            (objects.backing(&memory), objects.backing(&memory))
        else {
            panic!("an executable is backed by its file");
        };
        assert!(Arc::ptr_eq(&first, &second));
        assert!(matches!(first.kind, ObjectKind::Elf { file: Some(_) }));
        assert_eq!(objects.stats(), ObjectStats { opened: 1, failed: 0, over_limit: 0, live: 1 });
        drop((first, second));
        assert_eq!(objects.stats().live, 0);
    }

    #[test]
    fn copies_of_a_binary_keep_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut objects = ObjectCache::default();
        let memory = own_executable();
        let mut paths = Vec::new();
        for name in ["one", "two"] {
            let path = dir.path().join(name);
            std::fs::copy(&memory.path, &path).unwrap();
            let copy = MappedMemory { path: path.to_str().unwrap().to_owned(), ..memory.clone() };
            let Backing::Object(object) = objects.backing(&copy) else { panic!("not anonymous") };
            assert_eq!(object.path, copy.path);
            paths.push(object);
        }
        assert_eq!(paths[0].build_id, paths[1].build_id);
    }

    #[test]
    fn file_with_another_build_id_is_not_taken_for_the_mapped_one() {
        let mut objects = ObjectCache::default();
        let memory = MappedMemory { build_id: BuildId::new(&[1; 20]), ..own_executable() };
        let Backing::Object(object) = objects.backing(&memory) else { panic!("not anonymous") };
        assert!(matches!(object.kind, ObjectKind::Elf { file: None }));
        assert_eq!(object.build_id, memory.build_id, "frames keep the id that was mapped");
        assert_eq!(objects.stats().failed, 1);
    }

    #[test]
    fn memory_without_a_file_is_anonymous() {
        let mut objects = ObjectCache::default();
        for path in ["", "//anon", "[heap]", "/memfd:jit (deleted)", "[anon:v8]"] {
            assert!(matches!(objects.backing(&memory(path)), Backing::Anonymous), "{path}");
        }
        for path in ["[vsyscall]", "[uprobes]"] {
            let Backing::Object(object) = objects.backing(&memory(path)) else {
                panic!("{path} is opaque")
            };
            assert!(matches!(object.kind, ObjectKind::Opaque));
        }
    }
}
