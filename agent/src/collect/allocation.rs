//! The program that samples what is asked of allocators.

use std::path::Path;

use everflame_agent_common::stats::Program;

use super::{BpfError, CollectError, Collector, ProgramStats, Site, Uprobes};

impl Collector {
    /// What the program that samples allocations has counted.
    pub fn allocation_stats(&self) -> Result<ProgramStats, CollectError> {
        Ok(self.bpf.program_stats(Program::Allocation)?)
    }

    /// Attaches the program that samples what is asked of allocators to their functions: places in a
    /// file, in one process.
    pub fn probe_allocations(
        &self,
        file: &Path,
        sites: &[Site],
        pid: u32,
    ) -> Result<Uprobes, CollectError> {
        let program = self.bpf.uprobe_program(Program::Allocation);
        let program = program.ok_or(BpfError::Missing { name: Program::Allocation.name() })?;
        Ok(program.attach(file, sites, Some(pid))?)
    }
}
