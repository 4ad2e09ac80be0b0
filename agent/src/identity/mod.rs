//! Who a process is: the labels by which people find its profile.
//!
//! `service` and `version` decide everything about comparing releases, so they come
//! from what people wrote down before anything that is inferred. In this order:
//! OpenTelemetry variables, systemd unit, name of the executable; and for the version,
//! OpenTelemetry, else the build id of the executable.
//!
//! All of it is read from `/proc` and written by the process itself, so it is bounded
//! and cleaned. A process that vanishes halfway yields what was learnt by then.

mod cgroup;
mod otel;
mod program;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use self::cgroup::{CgroupIdentity, parse_cgroup};
pub use self::otel::{OtelIdentity, parse_environ};
pub(crate) use self::program::{identify_as_copy, identity_of};
use crate::object::BuildId;

/// Environments are usually a few KiB; what comes after this is not looked at.
const MAX_ENVIRON_BYTES: u64 = 256 << 10;

/// `/proc/PID/cgroup` has a line per hierarchy, of at most a path's length each.
const MAX_CGROUP_BYTES: u64 = 64 << 10;

/// Longer values are cut. Prometheus and its relatives have similar limits.
const MAX_LABEL_BYTES: usize = 256;

/// The name of all kernel threads together, which have names such as `kworker/0:1` of
/// their own in the label `comm`.
const KERNEL_SERVICE: &str = "kernel";

/// What could be learnt about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// The name of its main thread, at most 15 bytes.
    pub comm: Option<String>,
    /// The file name of its executable. Kernel threads have none.
    pub executable: Option<String>,
    /// Whether it is a thread of the kernel.
    pub is_kernel_thread: bool,
    /// From its OpenTelemetry variables.
    pub otel: OtelIdentity,
    /// From its control group.
    pub cgroup: CgroupIdentity,
}

impl ProcessIdentity {
    /// The `service` label; None for a process of which nothing is known.
    pub fn service(&self) -> Option<&str> {
        if self.is_kernel_thread {
            return Some(KERNEL_SERVICE);
        }
        self.otel
            .service_name
            .as_deref()
            .or_else(|| self.cgroup.service_unit_name())
            .or(self.executable.as_deref())
            .or(self.comm.as_deref())
    }

    /// The `version` label; `build_id` is the one of the main executable.
    pub fn version(&self, build_id: Option<&BuildId>) -> Option<String> {
        self.otel.service_version.clone().or_else(|| build_id.map(ToString::to_string))
    }

    /// The labels `service`, `version`, `comm`, `container_id` and `unit`, as far as
    /// they are known.
    pub fn labels(&self, build_id: Option<&BuildId>) -> Vec<(&'static str, String)> {
        let labels = [
            ("service", self.service().map(str::to_owned)),
            ("version", self.version(build_id)),
            ("comm", self.comm.clone()),
            ("container_id", self.cgroup.container_id.clone()),
            ("unit", self.cgroup.unit.clone()),
        ];
        labels.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Reads what `/proc` says about a process. `proc_root` is `/proc`, or where the host's
/// is mounted.
pub fn identify(proc_root: &Path, pid: u32) -> ProcessIdentity {
    let dir = proc_root.join(pid.to_string());
    let stat = read_bounded(&dir.join("stat"), 4096).unwrap_or_default();
    let (comm, is_kernel_thread) = parse_stat(&stat).unzip();
    ProcessIdentity {
        comm: comm.flatten(),
        executable: fs::read_link(dir.join("exe")).ok().and_then(|path| executable_name(&path)),
        is_kernel_thread: is_kernel_thread.unwrap_or(false),
        otel: read_bounded(&dir.join("environ"), MAX_ENVIRON_BYTES)
            .map(|environ| parse_environ(&environ))
            .unwrap_or_default(),
        cgroup: read_cgroup(&dir).unwrap_or_default(),
    }
}

/// The same of a process that is a copy of another, whose program and environment it has: only its
/// control group may have changed. `None` if it is gone.
pub fn identify_copy(
    proc_root: &Path,
    pid: u32,
    original: &ProcessIdentity,
) -> Option<ProcessIdentity> {
    let cgroup = read_cgroup(&proc_root.join(pid.to_string()))?;
    Some(ProcessIdentity { cgroup, ..original.clone() })
}

fn read_cgroup(dir: &Path) -> Option<CgroupIdentity> {
    let cgroup = read_bounded(&dir.join("cgroup"), MAX_CGROUP_BYTES)?;
    Some(parse_cgroup(&String::from_utf8_lossy(&cgroup)))
}

/// The `host` label: what the operator says, else the kernel's name of this machine.
pub fn host_name(configured: Option<&str>) -> String {
    configured.and_then(label_value).unwrap_or_else(|| {
        let uname = rustix::system::uname();
        label_value(&uname.nodename().to_string_lossy()).unwrap_or_else(|| "unknown".into())
    })
}

/// Makes text from a foreign process fit for a label: trimmed, without control
/// characters, of bounded length; None when nothing is left.
fn label_value(text: &str) -> Option<String> {
    let mut value: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    value.truncate(value.floor_char_boundary(MAX_LABEL_BYTES));
    (!value.is_empty()).then_some(value)
}

fn executable_name(path: &Path) -> Option<String> {
    let name = path.file_name().map(OsStr::as_bytes)?;
    // The kernel's mark of a file that was deleted, as it is after an upgrade.
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    label_value(&String::from_utf8_lossy(name))
}

/// The name, and whether it is a kernel thread, from `/proc/PID/stat` (proc(5)):
/// `pid (comm) state ppid pgrp session tty_nr tpgid flags ...`; comm may contain
/// anything, so the last parenthesis ends it.
pub(crate) fn parse_stat(stat: &[u8]) -> Option<(Option<String>, bool)> {
    // PF_KTHREAD in include/linux/sched.h.
    const KERNEL_THREAD_FLAG: u64 = 0x0020_0000;
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let comm = label_value(&String::from_utf8_lossy(stat.get(open + 1..close)?));
    let rest = std::str::from_utf8(&stat[close + 1..]).ok()?;
    let flags = rest.split_whitespace().nth(6)?.parse::<u64>().ok()?;
    Some((comm, flags & KERNEL_THREAD_FLAG != 0))
}

fn read_bounded(path: &Path, max_bytes: u64) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    match File::open(path).and_then(|file| file.take(max_bytes).read_to_end(&mut content)) {
        Ok(_) => Some(content),
        // The process is gone, or it is not ours to look at.
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "cannot identify a process fully");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A process directory as `/proc` would have it.
    fn proc_with(files: &[(&str, &str)], exe: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("42");
        fs::create_dir(&dir).expect("a process");
        for (name, content) in files {
            fs::write(dir.join(name), content).expect("a file");
        }
        if let Some(exe) = exe {
            std::os::unix::fs::symlink(exe, dir.join("exe")).expect("a link");
        }
        root
    }

    #[test]
    fn what_people_wrote_down_comes_first() {
        let stat = "42 (java) S 1 42 42 0 -1 4194560 1 2 3";
        let environ = "PATH=/bin\0OTEL_SERVICE_NAME=checkout\0\
                       OTEL_RESOURCE_ATTRIBUTES=service.name=ignored,service.version=v42\0";
        let cgroup = &format!("0::/system.slice/docker-{CONTAINER}.scope\n");
        let files = [("stat", stat), ("environ", environ), ("cgroup", cgroup)];
        let root = proc_with(&files, Some("/usr/lib/jvm/bin/java"));
        assert_eq!(
            identify(root.path(), 42).labels(BuildId::new(&[0xab]).as_ref()),
            [
                ("service", "checkout".into()),
                ("version", "v42".into()),
                ("comm", "java".into()),
                ("container_id", CONTAINER.into()),
            ]
        );
    }

    #[test]
    fn copy_has_the_program_of_its_original_and_a_control_group_of_its_own() {
        let environ = "OTEL_SERVICE_NAME=checkout\0";
        let files = [("environ", environ), ("cgroup", "0::/system.slice/a.service\n")];
        let original = identify(proc_with(&files, Some("/usr/bin/server")).path(), 42);
        let root = proc_with(&[("cgroup", "0::/system.slice/b.service\n")], None);
        let copy = identify_copy(root.path(), 42, &original).unwrap();
        assert_eq!(copy.service(), Some("checkout"));
        assert_eq!(copy.executable.as_deref(), Some("server"));
        assert_eq!(copy.cgroup.unit.as_deref(), Some("b.service"));
        assert_eq!(identify_copy(root.path(), 43, &original), None, "it is gone");
    }

    #[test]
    fn the_unit_comes_before_the_executable_and_the_build_id_is_a_version() {
        let files = [("cgroup", "0::/system.slice/nginx.service\n")];
        let root = proc_with(&files, Some("/usr/sbin/nginx-1.2 (deleted)"));
        let identity = identify(root.path(), 42);
        assert_eq!(identity.executable.as_deref(), Some("nginx-1.2"));
        assert_eq!(
            identity.labels(BuildId::new(&[0xab, 1]).as_ref()),
            [
                ("service", "nginx".into()),
                ("version", "ab01".into()),
                ("unit", "nginx.service".into()),
            ]
        );
    }

    #[test]
    fn without_anything_else_the_executable_names_the_service() {
        let files = [("stat", "42 (worker #1) S 1 42 42 0 -1 4194560 1"), ("cgroup", "0::/\n")];
        let root = proc_with(&files, Some("/opt/app/bin/server"));
        assert_eq!(identify(root.path(), 42).service(), Some("server"));
    }

    #[test]
    fn kernel_threads_are_one_service() {
        let root = proc_with(&[("stat", "42 (kworker/0:1) I 2 0 0 0 -1 69238880 0")], None);
        let identity = identify(root.path(), 42);
        assert!(identity.is_kernel_thread);
        assert_eq!(identity.service(), Some("kernel"));
        assert_eq!(identity.comm.as_deref(), Some("kworker/0:1"));
    }

    #[test]
    fn a_vanished_process_has_no_identity_and_is_no_error() {
        let root = proc_with(&[], None);
        assert_eq!(identify(root.path(), 43), ProcessIdentity::default());
        assert_eq!(identify(root.path(), 43).service(), None);
    }

    #[test]
    fn this_process_can_be_identified() {
        let identity = identify(Path::new("/proc"), std::process::id());
        assert!(identity.comm.is_some() && identity.executable.is_some());
        assert!(!identity.is_kernel_thread);
    }

    fn check_stat(stat: &str, expected: Option<(Option<&str>, bool)>) {
        let actual = parse_stat(stat.as_bytes());
        let expected = expected.map(|(comm, kernel)| (comm.map(str::to_owned), kernel));
        assert_eq!(actual, expected, "{stat:?}");
    }

    #[test]
    fn names_with_parentheses_and_spaces_do_not_confuse() {
        check_stat("1 (a) b (c)) S 0 1 1 0 -1 4194560 0", Some((Some("a) b (c)"), false)));
        check_stat("1 () S 0 1 1 0 -1 4194560 0", Some((None, false)));
        check_stat("1 )( S 0 1 1 0 -1 4194560 0", None);
        check_stat("1 (a) S 0", None);
        check_stat("", None);
    }

    #[test]
    fn labels_are_bounded_and_clean() {
        assert_eq!(label_value(" a\n\u{7}b "), Some("ab".into()));
        assert_eq!(label_value(" \t"), None);
        assert_eq!(label_value(&"ü".repeat(1000)).map(|value| value.len()), Some(256));
    }

    #[test]
    fn the_operator_can_name_the_host() {
        assert_eq!(host_name(Some("web-1")), "web-1");
        assert!(!host_name(None).is_empty());
        assert_eq!(host_name(Some("")), host_name(None));
    }
}
