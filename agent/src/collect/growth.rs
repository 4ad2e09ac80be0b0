//! The program that samples growth of memory.

use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf};

use super::bpf::BpfError;

const GROWTH: &str = "growth";

/// Loads it and attaches nothing yet.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    let types = Btf::from_sys_fs().map_err(|source| BpfError::Types { source })?;
    program(ebpf)?
        .load("rss_stat", &types)
        .map_err(|source| BpfError::Program { program: GROWTH, source })
}

/// Attaches it.
pub(super) fn start(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    let attached = program(ebpf)?.attach();
    attached.map_err(|source| BpfError::Program { program: GROWTH, source })?;
    Ok(())
}

fn program(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint, BpfError> {
    ebpf.program_mut(GROWTH)
        .and_then(|program| program.try_into().ok())
        .ok_or(BpfError::Missing { name: GROWTH })
}
