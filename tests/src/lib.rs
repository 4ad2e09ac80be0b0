//! What the end-to-end tests and benches share: finding the programs, compiling workloads,
//! and running agents and collectors that are stopped when a test ends.
//!
//! Failure means panic, with what the programs printed: this crate is only used by tests.
#![expect(clippy::panic, clippy::expect_used, reason = "helpers of tests fail by panicking")]
#![forbid(unsafe_code)]

use std::io::Write as _;

pub mod allocations;
pub mod bench;
pub mod busy;
pub mod cgroup;
pub mod cost;
pub mod disk;
pub mod fio;
pub mod net;
pub mod profile;
pub mod program;
pub mod redis;
pub mod stored;
pub mod tcp;
pub mod totals;
pub mod waits;
pub mod workload;

/// Whether BPF can be used here. Where it cannot, tests that need it print why and return;
/// with `CI=true` that is a failure.
pub fn bpf_is_permitted() -> bool {
    let output = program::everflame()
        .args(["record", "--duration", "1s", "-o"])
        .arg(program::scratch_dir().join("permitted.folded"))
        .output()
        .expect("everflame can be started");
    // 77 is EX_NOPERM. Other failures are for the test itself to show.
    let permitted = output.status.code() != Some(77);
    if !permitted {
        let reason = String::from_utf8_lossy(&output.stderr);
        assert!(std::env::var_os("CI").is_none(), "BPF is not permitted in CI: {reason}");
        // Not through the test harness, which hides what passing tests print.
        let _ = writeln!(std::io::stderr(), "SKIPPED: BPF is not permitted here: {reason}");
    }
    permitted
}
