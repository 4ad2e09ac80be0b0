//! The files that code is mapped from, held open for as long as a frame may need them.
//!
//! A process can be gone, and its executable deleted, before its samples are
//! symbolised. So the agent opens each mapped file when it learns of the mapping
//! and keeps it in an [`ObjectFile`]; from then on nothing depends on the process.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The identity that a linker gave a binary (the `.note.gnu.build-id` note), usually
/// a 20-byte SHA-1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuildId {
    len: u8,
    bytes: [u8; Self::MAX_LEN],
}

impl BuildId {
    /// The kernel keeps no more than this, and no known linker writes more.
    pub const MAX_LEN: usize = 20;

    /// Takes 1 to 20 bytes; longer notes keep their first 20, as the kernel does.
    pub fn new(note: &[u8]) -> Option<Self> {
        if note.is_empty() {
            return None;
        }
        let len = note.len().min(Self::MAX_LEN);
        let mut bytes = [0; Self::MAX_LEN];
        bytes[..len].copy_from_slice(&note[..len]);
        Some(Self { len: u8::try_from(len).ok()?, bytes })
    }

    /// The identity's bytes, without padding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BuildId({self})")
    }
}

/// What kind of memory a mapping's code comes from; decides how it is symbolised.
#[derive(Debug)]
pub enum ObjectKind {
    /// An ELF file. `file` is open unless it could not be opened in time.
    Elf {
        /// The file itself, opened when the mapping appeared.
        file: Option<File>,
    },
    /// The kernel's vDSO, the same image in every process.
    Vdso,
    /// Memory without a file: code that a runtime generated. Its symbols, if any, are
    /// in `/tmp/perf-PID.map` or in a jitdump file of the process.
    Jit(JitProcess),
    /// Something that can never be symbolised, such as `[vsyscall]`.
    Opaque,
}

/// Where to look for what a runtime says about its generated code. What is open here is
/// there when the process is gone.
#[derive(Clone, Debug)]
pub struct JitProcess {
    /// The process id as the agent sees it.
    pub pid: u32,
    /// Tells apart the programs that this process id has stood for.
    pub generation: u64,
    /// The process id in the process's own pid namespace, which names its perf map.
    pub namespace_pid: u32,
    /// The user that it runs as: files of others, root excepted, say nothing about it.
    pub uid: u32,
    /// The process's root directory (`O_PATH`), unless it was gone too soon.
    pub root: Option<Arc<OwnedFd>>,
    /// jitdump files (`jit-PID.dump`) that the process has mapped.
    pub jitdumps: Vec<Arc<ObjectFile>>,
}

/// A file (or file-like thing) that code is mapped from. Two mappings of the same file
/// share one `ObjectFile`, in an `Arc`.
#[derive(Debug)]
pub struct ObjectFile {
    /// The path in the process's mount namespace, or a name such as `[vdso]`. For people.
    pub path: String,
    /// The linker's identity, where there is one.
    pub build_id: Option<BuildId>,
    /// How to find its symbols.
    pub kind: ObjectKind,
}
