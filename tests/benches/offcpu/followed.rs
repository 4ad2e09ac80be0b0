//! What an agent follows here. The first program runs once in each switch.

use crate::beside::hooks::Followed;

/// Waits.
pub(crate) const WAITS: Followed = Followed {
    kinds: "offcpu",
    hooks: &[("switch_out", "sched_switch"), ("switch_in", "sched_exit_tp")],
};

/// Waits, and locks and who releases them.
pub(crate) const LOCKS: Followed = Followed {
    kinds: "offcpu,lock",
    hooks: &[
        ("switch_out", "sched_switch"),
        ("switch_in", "sched_exit_tp"),
        ("waking", "sched_waking"),
        ("lock_begin", "contention_begin"),
        ("lock_end", "contention_end"),
    ],
};
