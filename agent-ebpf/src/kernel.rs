//! What programs can rely on. Each program is compiled once for recent kernels and once for
//! all from 5.10 on; the agent loads the one that fits.

/// What a kernel offers.
pub trait Kernel {
    /// `bpf_loop` (5.17): loops whose body is verified once.
    const HAS_LOOP: bool;
    /// `bpf_task_pt_regs` (5.15) and `bpf_get_current_task_btf` (5.11).
    const HAS_TASK_REGISTERS: bool;
}

/// 5.17 and later.
pub struct Recent;

/// 5.10 and later.
pub struct Old;

impl Kernel for Recent {
    const HAS_LOOP: bool = true;
    const HAS_TASK_REGISTERS: bool = true;
}

impl Kernel for Old {
    const HAS_LOOP: bool = false;
    const HAS_TASK_REGISTERS: bool = false;
}
