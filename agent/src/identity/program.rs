//! Who the processes are that the agent follows: asked once for each, and for copies not even that.

use std::path::Path;
use std::sync::Arc;

use super::{ProcessIdentity, identify};
use crate::process::{Process, ProcessTable};

/// Takes a process that is a copy of one that is there for the same, until the window ends: a server
/// that forks hundreds of workers is asked once for all of them.
pub(crate) fn identify_as_copy(pid: u32, processes: &mut ProcessTable, vanished: &mut u64) {
    if processes.get_mut(pid).identity.is_some() {
        return;
    }
    let Some((parent, original)) = processes.original_mut(pid) else { return };
    let found = ProcessIdentity::clone(&identity_of(parent, original, vanished));
    let process = processes.get_mut(pid);
    process.identity = Some(named(process, found));
    process.cgroup_is_assumed = true;
}

/// Finds out who a process is, once. What the side-band has seen wins over /proc; of a process
/// that has left /proc already the rest is taken from its parent, as it inherits environment
/// and control group.
pub(crate) fn identity_of(
    pid: u32,
    process: &mut Process,
    vanished: &mut u64,
) -> Arc<ProcessIdentity> {
    if let Some(identity) = &process.identity {
        return Arc::clone(identity);
    }
    let mut found = identify(Path::new("/proc"), pid);
    if found.comm.is_none() {
        *vanished += 1;
        if let Some(inherited) = &process.inherited {
            found.otel = inherited.otel.clone();
            found.cgroup = inherited.cgroup.clone();
        }
    }
    let identity = named(process, found);
    process.identity = Some(Arc::clone(&identity));
    identity
}

/// What was found of a process, with the names that the side-band has seen.
fn named(process: &Process, found: ProcessIdentity) -> Arc<ProcessIdentity> {
    let executable = process.executable.as_deref().and_then(|path| path.rsplit('/').next());
    Arc::new(ProcessIdentity {
        comm: Some(process.name.clone()).filter(|name| !name.is_empty()).or(found.comm),
        executable: executable.map(str::to_owned).or(found.executable),
        is_kernel_thread: process.kernel_thread || found.is_kernel_thread,
        ..found
    })
}
