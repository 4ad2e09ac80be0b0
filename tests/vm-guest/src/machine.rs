//! What init does for a machine: mounting what programs expect, and switching it off.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// Filesystems with their type, in an order in which the mount points are there.
const MOUNTS: [(&str, &str); 5] = [
    ("/proc", "proc"),
    ("/sys", "sysfs"),
    ("/dev", "devtmpfs"),
    ("/tmp", "tmpfs"),
    ("/sys/kernel/tracing", "tracefs"),
];

pub(crate) fn mount_all() -> Result<()> {
    for (target, kind) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
        // Some kernels mount /dev themselves.
        if kind == "devtmpfs" && Path::new("/dev/null").exists() {
            continue;
        }
        mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {target}"))?;
    }
    Ok(())
}

/// As `uname -r` says it.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Does not come back.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    // The last lines are still on their way to the serial port.
    std::thread::sleep(Duration::from_millis(100));
    let _ = reboot(RebootCommand::PowerOff);
    // When init ends the kernel panics, which the host sees.
    std::process::exit(71)
}
