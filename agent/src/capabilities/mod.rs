//! What this process may do, and what is switched off because it may not.

mod report;

use caps::{CapSet, Capability};

pub use report::Report;

/// A right that the agent uses, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The capability.
    pub capability: Capability,
    /// Older or wider capabilities that include it.
    pub included_in: &'static [Capability],
    /// Whether there is nothing to do without it.
    pub required: bool,
    /// What it gives.
    pub gives: &'static str,
    /// What is off without it.
    pub without: &'static str,
}

/// Everything that the agent asks of the kernel.
pub const NEEDS: [Need; 6] = [
    Need {
        capability: Capability::CAP_BPF,
        included_in: &[Capability::CAP_SYS_ADMIN],
        required: true,
        gives: "loading the BPF programs",
        without: "nothing can be sampled",
    },
    Need {
        capability: Capability::CAP_PERFMON,
        included_in: &[Capability::CAP_SYS_ADMIN],
        required: true,
        gives: "sampling CPUs and following processes",
        without: "nothing can be sampled",
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        included_in: &[],
        required: false,
        gives: "reading the memory maps, environment and files of other users' processes",
        without: "processes of other users that ran before the agent are not symbolised",
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        included_in: &[Capability::CAP_DAC_OVERRIDE],
        required: false,
        gives: "opening executables that only their owners may read",
        without: "executables in private directories are not symbolised",
    },
    Need {
        capability: Capability::CAP_SYSLOG,
        included_in: &[],
        required: false,
        gives: "reading kernel addresses from /proc/kallsyms",
        without: "kernel frames are not symbolised when kernel.kptr_restrict is set",
    },
    Need {
        capability: Capability::CAP_CHECKPOINT_RESTORE,
        included_in: &[Capability::CAP_SYS_ADMIN],
        required: false,
        gives: "opening deleted executables through /proc/PID/map_files",
        without: "executables that were deleted before they were seen are not symbolised",
    },
];

/// Whether this process has a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The right.
    pub need: Need,
    /// Whether it is there.
    pub present: bool,
}

/// Something is missing without which there is nothing to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "BPF is not permitted, as {missing} is missing: run as root, or with CAP_BPF and CAP_PERFMON \
     (in a container, add these capabilities and allow the bpf system call in the seccomp profile)"
)]
pub struct NotPermitted {
    missing: Capability,
}

/// Whether profiling makes sense at all.
///
/// # Errors
/// When a required capability is missing.
pub fn require(findings: &[Finding]) -> Result<(), NotPermitted> {
    match findings.iter().find(|finding| finding.need.required && !finding.present) {
        Some(finding) => Err(NotPermitted { missing: finding.need.capability }),
        None => Ok(()),
    }
}

/// Looks at the effective capabilities of this process.
pub fn find() -> Vec<Finding> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    NEEDS
        .into_iter()
        .map(|need| {
            let present = has(need.capability) || need.included_in.iter().copied().any(has);
            Finding { need, present }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(present: impl Fn(&Need) -> bool) -> Vec<Finding> {
        NEEDS.into_iter().map(|need| Finding { need, present: present(&need) }).collect()
    }

    #[test]
    fn only_what_is_required_is_a_reason_not_to_start() {
        assert_eq!(require(&findings(|need| need.required)), Ok(()));
        let without_perfmon = findings(|need| need.capability != Capability::CAP_PERFMON);
        let message = require(&without_perfmon).unwrap_err().to_string();
        assert!(message.contains("as CAP_PERFMON is missing: run as root"), "{message}");
    }
}
