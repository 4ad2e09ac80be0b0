//! Which of the known processes run.

use super::table::{Generation, ProcessTable};

impl ProcessTable {
    /// Programs that run and are not the kernel's, by their process ids.
    pub fn running(&self) -> impl Iterator<Item = (u32, Generation)> + '_ {
        let running = self.by_pid.iter().filter(|(_, process)| {
            process.exited_ns.is_none() && !process.kernel_thread && !process.mappings.is_empty()
        });
        running.map(|(pid, process)| (*pid, process.generation))
    }
}
