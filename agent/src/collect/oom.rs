//! The program that tells whom the kernel ends for want of memory.

use std::fs;

use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf};

use super::bpf::BpfError;
use super::event::Sample;
use crate::kernel::{VictimArgument, victim_argument};

const TRACEPOINT: &str = "mark_victim";

/// Loads and attaches it.
pub(super) fn start(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    let name = match victim_argument()? {
        VictimArgument::Task => "oom_victim",
        VictimArgument::ThreadId => "oom_victim_by_id",
    };
    let types = Btf::from_sys_fs().map_err(|source| BpfError::Types { source })?;
    let program: &mut BtfTracePoint = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(BpfError::Missing { name })?;
    let refused = |source| BpfError::Program { program: name, source };
    program.load(TRACEPOINT, &types).map_err(refused)?;
    program.attach().map_err(refused)?;
    Ok(())
}

/// The process that a record is about.
pub(super) fn victim(record: &Sample) -> u32 {
    match record.pid {
        // It may take long to end, so that this is there still; mostly its first thread is marked.
        0 => process_of(record.tid).unwrap_or(record.tid),
        pid => pid,
    }
}

/// The process of a thread.
fn process_of(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_of_a_thread_is_found() {
        let thread = std::thread::spawn(|| {
            let own = fs::read_link("/proc/thread-self").unwrap();
            process_of(own.file_name().unwrap().to_str().unwrap().parse().unwrap())
        });
        assert_eq!(thread.join().unwrap(), Some(std::process::id()));
        assert_eq!(process_of(u32::MAX), None);
    }
}
