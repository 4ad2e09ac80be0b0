//! `exec`: forgets what was known of a process that becomes another program.
//!
//! The agent learns of an exec at about the same time, but needs a while to find out what the
//! new program has mapped. A stack that was walked by the former program's layout meanwhile
//! would end in nowhere; without a layout it is copied, and finished by the agent.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use everflame_agent_common::limits::EXEC_RECORD_LEAD_NS;

use crate::{maps::PROCESSES, stats};

/// At the end of an exec, before the new program's first instruction.
#[inline(always)]
pub fn forget_layout() {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: integers; what is read half of one value and half of another costs a copy.
    let Some(layout) = (unsafe { PROCESSES.get(pid) }) else { return };
    // The agent may have been quicker.
    if layout.exec_ns.wrapping_add(EXEC_RECORD_LEAD_NS) < stats::now_ns() {
        // Fails if the agent has just removed it.
        let _ = PROCESSES.remove(pid);
    }
}
