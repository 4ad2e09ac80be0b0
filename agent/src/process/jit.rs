//! Gets hold of what a process says about its generated code, while it lives.
//!
//! Samples are symbolised when their window ends, and many processes are gone by then. So
//! the process's root directory is opened when its first sample in generated code comes;
//! its jitdump files were opened when it mapped them.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::object::{JitProcess, ObjectFile, ObjectKind};

/// The name of code without a file. In brackets, as pprof tools look for no file then.
const JIT_PATH: &str = "[anon]";

/// The object that stands for a process's generated code: the `known` one, unless more
/// jitdump files have come since.
pub(super) fn object(
    known: Option<&Arc<ObjectFile>>,
    pid: u32,
    generation: u64,
    jitdumps: &[Arc<ObjectFile>],
) -> Arc<ObjectFile> {
    let process = match known.map(|known| (known, &known.kind)) {
        Some((known, ObjectKind::Jit(process))) if process.jitdumps.len() == jitdumps.len() => {
            return Arc::clone(known);
        }
        Some((_, ObjectKind::Jit(process))) => process.clone(),
        _ => open(pid, generation),
    };
    let process = JitProcess { jitdumps: jitdumps.to_vec(), ..process };
    Arc::new(ObjectFile {
        path: JIT_PATH.to_owned(),
        build_id: None,
        kind: ObjectKind::Jit(process),
    })
}

fn open(pid: u32, generation: u64) -> JitProcess {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = Ids::parse(&status);
    JitProcess {
        pid,
        generation,
        namespace_pid: ids.as_ref().and_then(|ids| ids.namespace_pid).unwrap_or(pid),
        uid: ids.as_ref().map_or(0, |ids| ids.effective_uid),
        // Without knowing whose files to believe, none are.
        root: ids.and_then(|_| open_root(pid)).map(Arc::new),
        jitdumps: Vec::new(),
    }
}

fn open_root(pid: u32) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty()).ok()
}

/// Of /proc/PID/status.
#[derive(Debug, PartialEq, Eq)]
struct Ids {
    effective_uid: u32,
    /// In the innermost pid namespace.
    namespace_pid: Option<u32>,
}

impl Ids {
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        // Real, effective, saved, file system.
        let effective_uid = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
        let namespace_pid =
            field("NSpid:").and_then(|ids| ids.split_whitespace().next_back()?.parse().ok());
        Some(Self { effective_uid, namespace_pid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_that_files_of_the_process_have() {
        let status = "Name:\tUid: 5\nUid:\t1000\t0\t1000\t1000\nNSpid:\t4711\t9\t1\n";
        let expected = Ids { effective_uid: 0, namespace_pid: Some(1) };
        assert_eq!(Ids::parse(status), Some(expected));
        assert_eq!(Ids::parse("Name:\tgone\n"), None);
    }

    #[test]
    fn root_is_held_open_and_kept_when_jitdumps_come() {
        let first = object(None, std::process::id(), 1, &[]);
        let ObjectKind::Jit(process) = &first.kind else { panic!("not generated code") };
        let root = process.root.as_ref().expect("this process lives");
        assert!(Arc::ptr_eq(&object(Some(&first), 0, 0, &[]), &first));
        let dump = ObjectFile { path: String::new(), build_id: None, kind: ObjectKind::Opaque };
        let second = object(Some(&first), 0, 0, &[Arc::new(dump)]);
        let ObjectKind::Jit(process) = &second.kind else { panic!("not generated code") };
        assert!(Arc::ptr_eq(process.root.as_ref().expect("as before"), root));
        assert_eq!(process.jitdumps.len(), 1);
    }

    #[test]
    fn process_that_is_gone_has_no_root() {
        let object = object(None, u32::MAX, 1, &[]);
        let ObjectKind::Jit(process) = &object.kind else { panic!("not generated code") };
        assert!(process.root.is_none());
    }
}
