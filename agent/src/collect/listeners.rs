//! Ports that somebody listens on when the agent begins.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::process::running_pids;

/// How the kernel shows a socket that listens (`TCP_LISTEN`).
const LISTENING: &str = "0A";

/// (network namespace by the inode number, port) of each, in all namespaces that processes are in.
pub(super) fn listeners() -> Vec<(u32, u16)> {
    let mut namespaces = HashSet::new();
    let mut listeners = HashSet::new();
    for pid in running_pids().into_iter().flatten() {
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) else { continue };
        if !namespaces.insert(namespace.ino()) {
            continue;
        }
        for table in ["tcp", "tcp6"] {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            let netns = u32::try_from(namespace.ino()).unwrap_or(0);
            listeners.extend(ports(&text).map(|port| (netns, port)));
        }
    }
    listeners.into_iter().collect()
}

/// Those of a table as /proc/net/tcp has it.
fn ports(table: &str) -> impl Iterator<Item = u16> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        (state == LISTENING).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_port_is_among_them() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let netns = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        assert!(listeners().contains(&(netns, port)));
        drop(listener);
        assert!(!listeners().contains(&(netns, port)));
    }
}
