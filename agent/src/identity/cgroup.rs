//! Container id and systemd unit from the control group of a process.
//!
//! `/proc/PID/cgroup` (cgroups(7)) has a line `id:controllers:path` per hierarchy: only
//! `0::path` with version 2, one per controller with version 1, both on hybrid hosts.
//! Container engines put the container's id, 64 hexadecimal digits, into the path; where
//! and behind which prefix differs by engine, version and cgroup driver, but the digits
//! always end a name, so that is what is looked for.

use super::label_value;

/// What a control group says about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupIdentity {
    /// The full id that the container engine gave.
    pub container_id: Option<String>,
    /// The systemd unit (`nginx.service`, `session-3.scope`), innermost first.
    pub unit: Option<String>,
}

/// Units that run other people's containers; a process in a container is not theirs.
const CONTAINER_ENGINES: [&str; 7] = [
    "containerd.service",
    "crio.service",
    "cri-o.service",
    "docker.service",
    "k3s.service",
    "kubelet.service",
    "podman.service",
];

impl CgroupIdentity {
    /// The unit's name where it names a service: not for scopes, which are made for
    /// login sessions and the like.
    pub fn service_unit_name(&self) -> Option<&str> {
        self.unit.as_deref()?.strip_suffix(".service")
    }
}

/// Reads the content of `/proc/PID/cgroup`.
pub fn parse_cgroup(content: &str) -> CgroupIdentity {
    let mut paths: Vec<(&str, &str)> = content
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.split_once(':')
        })
        // The kernel's mark of a group that was removed while the process was in it.
        .map(|(controllers, path)| (controllers, path.trim_end_matches(" (deleted)")))
        .collect();
    // systemd's own hierarchies know best: version 2, then version 1's named one.
    paths.sort_by_key(|&(controllers, _)| match controllers {
        "" => 0,
        "name=systemd" => 1,
        _ => 2,
    });
    let container_id = paths.iter().find_map(|(_, path)| container_id(path)).map(str::to_owned);
    let in_container = container_id.is_some();
    let unit = paths.iter().find_map(|(_, path)| unit(path, in_container)).and_then(label_value);
    CgroupIdentity { container_id, unit }
}

/// The innermost container: a path can name several, as with Docker in Docker.
fn container_id(path: &str) -> Option<&str> {
    path.rsplit('/').find_map(segment_container_id)
}

/// A segment such as `<id>`, `docker-<id>.scope`, `crio-<id>` or, from containerd,
/// `kubepods-pod1.slice:cri-containerd:<id>`.
fn segment_container_id(segment: &str) -> Option<&str> {
    const ID_LEN: usize = 64;
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let (prefix, id) = name.split_at_checked(name.len().checked_sub(ID_LEN)?)?;
    let is_id = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let starts_name = prefix.is_empty() || prefix.ends_with(['-', ':']);
    // conmon watches over a container, from outside.
    (is_id && starts_name && !prefix.contains("conmon")).then_some(id)
}

fn unit(path: &str, in_container: bool) -> Option<&str> {
    path.rsplit('/').find(|segment| {
        let is_unit = segment.ends_with(".service") || segment.ends_with(".scope");
        let is_engine = in_container && CONTAINER_ENGINES.contains(segment);
        // The manager of a user's session is only the parent of what runs in it.
        let is_user_manager = segment.starts_with("user@");
        is_unit && !is_engine && !is_user_manager && segment_container_id(segment).is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OUTER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

    /// `$ID` and `$OUTER` in `content` stand for container ids.
    fn check(content: &str, container: Option<&str>, unit: Option<&str>) {
        let content = content.replace("$ID", ID).replace("$OUTER", OUTER);
        let identity = parse_cgroup(&content);
        assert_eq!(identity.container_id.as_deref(), container, "{content}");
        assert_eq!(identity.unit.as_deref(), unit, "{content}");
    }

    #[test]
    fn containers_of_all_engines_are_recognised() {
        for path in [
            "/docker/$ID",
            "/system.slice/docker-$ID.scope",
            "/kubepods/besteffort/pod3b1b/$ID",
            "/kubepods.slice/kubepods-pod1.slice/cri-containerd-$ID.scope",
            "/kubepods.slice/kubepods-burstable-pod1.slice/crio-$ID.scope",
            "/kubepods/burstable/pod1/crio-$ID",
            "/kubepods.slice/kubepods-pod1.slice/docker-$ID.scope/init.scope",
            "/system.slice/containerd.service/kubepods-burstable-pod1.slice:cri-containerd:$ID",
            "/machine.slice/libpod-$ID.scope",
            "/machine.slice/libpod-$ID.scope/container",
            "/libpod_parent/libpod-$ID",
            "/ecs/7a1b/$ID",
            "/actions_job/$ID",
            "/../../kubepods/pod1/$ID",
        ] {
            let identity = parse_cgroup(&format!("0::{path}\n").replace("$ID", ID));
            assert_eq!(identity.container_id.as_deref(), Some(ID), "{path}");
            assert_eq!(identity.service_unit_name(), None, "{path}");
        }
    }

    #[test]
    fn what_only_looks_like_a_container_is_none() {
        check("0::/\n", None, None);
        check("0::/docker/0123456789ab\n", None, None);
        check("0::/docker/x$ID\n", None, None);
        check("0::/docker/$ID0\n", None, None);
        check(
            "0::/machine.slice/libpod-conmon-$ID.scope\n",
            None,
            Some(&format!("libpod-conmon-{ID}.scope")),
        );
        check(
            "0::/docker/ABCDEF6789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            None,
            None,
        );
        check("garbage\n\n:\n0:\n::\n", None, None);
    }

    #[test]
    fn the_innermost_container_counts() {
        check("0::/docker/$OUTER/docker/$ID\n", Some(ID), None);
        check("0::/docker/$OUTER/kubelet.slice/cri-containerd-$ID.scope\n", Some(ID), None);
    }

    #[test]
    fn units_are_recognised() {
        check("0::/system.slice/nginx.service\n", None, Some("nginx.service"));
        check("0::/system.slice/nginx.service (deleted)\n", None, Some("nginx.service"));
        check(
            "0::/system.slice/system-postgresql.slice/postgresql@14-main.service\n",
            None,
            Some("postgresql@14-main.service"),
        );
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/editor.service\n",
            None,
            Some("editor.service"),
        );
        check("0::/user.slice/user-1000.slice/session-3.scope\n", None, Some("session-3.scope"));
        check("0::/user.slice/user-1000.slice/user@1000.service\n", None, None);
        check("0::/system.slice/app.service/worker\n", None, Some("app.service"));
    }

    #[test]
    fn a_unit_that_is_a_container_or_runs_inside_one_counts_but_the_engine_does_not() {
        check("0::/system.slice/app.service/libpod-payload-$ID\n", Some(ID), Some("app.service"));
        check("0::/docker/$ID/system.slice/nginx.service\n", Some(ID), Some("nginx.service"));
        check("0::/system.slice/containerd.service/x:cri-containerd:$ID\n", Some(ID), None);
        check("0::/system.slice/containerd.service\n", None, Some("containerd.service"));
    }

    #[test]
    fn version_1_and_hybrid_hosts_are_read() {
        check(
            "12:memory:/docker/$ID\n11:cpu,cpuacct:/docker/$ID\n1:name=systemd:/docker/$ID\n",
            Some(ID),
            None,
        );
        check(
            "4:memory:/system.slice/wrong.service\n1:name=systemd:/system.slice/nginx.service\n",
            None,
            Some("nginx.service"),
        );
        check(
            "2:cpu:/\n1:name=systemd:/docker/$ID\n0::/system.slice/docker.service\n",
            Some(ID),
            None,
        );
        check("9:memory:/kubepods/pod1/$ID\n1:name=systemd:/\n0::/\n", Some(ID), None);
    }

    #[test]
    fn a_scope_is_a_unit_but_not_the_name_of_a_service() {
        let identity = parse_cgroup("0::/user.slice/session-3.scope\n");
        assert_eq!(identity.service_unit_name(), None);
        assert_eq!(parse_cgroup("0::/a/b.service").service_unit_name(), Some("b"));
    }
}
