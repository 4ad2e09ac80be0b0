//! What programs can rely on. They are compiled to two objects, one for recent kernels and one
//! for all from 5.10 on; the agent loads the one that fits.

/// `bpf_loop` (5.17): loops whose body is verified once.
pub const HAS_LOOP: bool = cfg!(not(feature = "old-kernels"));

/// `bpf_task_pt_regs` (5.15) and `bpf_get_current_task_btf` (5.11).
pub const HAS_TASK_REGISTERS: bool = cfg!(not(feature = "old-kernels"));
