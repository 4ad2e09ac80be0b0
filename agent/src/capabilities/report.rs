//! What `everflame-agent capabilities` says: the rights of this process, the features of this
//! kernel, how user stacks are walked with both, and whether waits can be followed. For people as
//! text, for programs as JSON.

use std::error::Error as _;
use std::fmt;

use rustix::system::uname;
use serde::Serialize;

use super::Finding;
use crate::kernel::{Feature, KernelFeatures, Support, Unwinder, pt_regs_location};

/// Everything that decides what the agent can do here.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    rights: Vec<Line>,
    kernel: Kernel,
    user_stacks: UserStacks,
    waits: Waits,
}

#[derive(Clone, Debug, Serialize)]
struct Kernel {
    release: String,
    machine: String,
    features: Vec<Line>,
}

/// A right or a feature.
#[derive(Clone, Debug, Serialize)]
struct Line {
    name: String,
    state: State,
    required: bool,
    gives: &'static str,
    without: &'static str,
    /// The version of Linux that brought a feature.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<&'static str>,
    /// Why it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Present,
    Absent,
    Unknown,
}

/// How user stacks are walked; nothing where the programs could not be tried.
#[derive(Clone, Debug, Serialize)]
struct UserStacks {
    unwinder: Option<&'static str>,
    /// Where the registers of programs in the kernel come from.
    registers: Option<&'static str>,
    /// Why nothing comes from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Whether waits can be followed, for the profiles of kinds `offcpu` and `lock`.
#[derive(Clone, Debug, Serialize)]
struct Waits {
    /// How their ends are seen; nothing where they are not, or where that is not known.
    end: Option<&'static str>,
    /// Why they cannot be followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// What is not known of them here although they are followed.
    lost: Vec<&'static str>,
}

impl Report {
    /// Of these rights and features.
    pub fn new(rights: &[Finding], features: &KernelFeatures) -> Self {
        let system = uname();
        Self {
            rights: rights.iter().map(right).collect(),
            kernel: Kernel {
                release: system.release().to_string_lossy().into_owned(),
                machine: system.machine().to_string_lossy().into_owned(),
                features: features
                    .iter()
                    .map(|(feature, support)| Line {
                        name: feature.name().to_owned(),
                        state: match support {
                            Support::Present => State::Present,
                            Support::Absent => State::Absent,
                            Support::Unknown(_) => State::Unknown,
                        },
                        required: feature.is_required(),
                        gives: feature.gives(),
                        without: feature.without(),
                        since: Some(feature.since()),
                        reason: match support {
                            Support::Unknown(error) => Some(error.to_string()),
                            _ => None,
                        },
                    })
                    .collect(),
            },
            user_stacks: user_stacks(features),
            waits: waits(features),
        }
    }
}

fn right(Finding { need, present }: &Finding) -> Line {
    Line {
        name: need.capability.to_string(),
        state: if *present { State::Present } else { State::Absent },
        required: need.required,
        gives: need.gives,
        without: need.without,
        since: None,
        reason: None,
    }
}

fn user_stacks(features: &KernelFeatures) -> UserStacks {
    let decides = [Feature::BpfLoop, Feature::TaskPtRegs];
    let is_known = features.iter().all(|(feature, support)| {
        !decides.contains(&feature) || !matches!(support, Support::Unknown(_))
    });
    if !is_known {
        return UserStacks { unwinder: None, registers: None, problem: None };
    }
    match features.unwinder() {
        Unwinder::Recent => UserStacks {
            unwinder: Some("bpf_loop"),
            registers: Some("bpf_task_pt_regs"),
            problem: None,
        },
        Unwinder::Old => UserStacks {
            unwinder: Some("bounded loop"),
            registers: Some("BTF offsets"),
            problem: pt_regs_location().err().map(|error| match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            }),
        },
    }
}

/// Features that waits are followed without, too.
const WAIT_PARTS: [Feature; 3] = [Feature::RunDelay, Feature::SchedWaking, Feature::LockContention];

fn waits(features: &KernelFeatures) -> Waits {
    let decides = [Feature::SwitchState, Feature::TaskStorage];
    let is_known = features.iter().all(|(feature, support)| {
        !decides.contains(&feature) || !matches!(support, Support::Unknown(_))
    });
    let has_end = features.has(Feature::SchedExit) || features.has(Feature::FinishTaskSwitch);
    let lost = features
        .iter()
        .filter(|(feature, support)| {
            WAIT_PARTS.contains(feature) && matches!(support, Support::Absent)
        })
        .map(|(feature, _)| feature.without())
        .collect();
    match features.wait_end() {
        Ok(end) => Waits { end: (is_known && has_end).then_some(end.name()), problem: None, lost },
        Err(missing) => Waits { end: None, problem: Some(missing.to_string()), lost: Vec::new() },
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.rights {
            write!(f, "{line}")?;
        }
        writeln!(f, "\nLinux {} on {}", self.kernel.release, self.kernel.machine)?;
        for line in &self.kernel.features {
            write!(f, "{line}")?;
        }
        let UserStacks { unwinder, registers, problem } = &self.user_stacks;
        let known = |what: &Option<&'static str>| what.unwrap_or("not known");
        writeln!(f)?;
        writeln!(f, "{:<24} {}", "unwinder", known(unwinder))?;
        writeln!(f, "{:<24} {}", "registers in the kernel", known(registers))?;
        if let Some(problem) = problem {
            writeln!(f, "{:30}not found: {problem}", "")?;
        }
        let Waits { end, problem, lost } = &self.waits;
        match (end, problem) {
            (_, Some(problem)) => writeln!(f, "{:<24} not followed: {problem}", "waits")?,
            (Some(end), _) => {
                writeln!(f, "{:<24} followed; their ends are seen by {end}", "waits")?
            }
            (None, None) => writeln!(f, "{:<24} not known", "waits")?,
        }
        lost.iter().try_for_each(|lost| writeln!(f, "{:30}but {lost}", ""))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.state, self.required) {
            (State::Present, _) => "yes",
            (State::Absent, true) => "NO",
            (State::Absent, false) => "no",
            (State::Unknown, _) => "?",
        };
        writeln!(f, "{:<24} {state:<4} {}", self.name, self.gives)?;
        match (self.state, self.since, &self.reason) {
            (State::Present, ..) => Ok(()),
            (_, Some(since), Some(reason)) => {
                writeln!(f, "{:30}in Linux {since} and newer, but here: {reason}", "")
            }
            (_, Some(since), None) => {
                writeln!(f, "{:30}in Linux {since} and newer; without it: {}", "", self.without)
            }
            (_, None, _) => writeln!(f, "{:30}without it: {}", "", self.without),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::capabilities::NEEDS;

    /// A process with all rights on a kernel like this.
    fn report(support: impl FnMut(Feature) -> Support) -> Report {
        let rights = NEEDS.map(|need| Finding { need, present: true });
        Report::new(&rights, &KernelFeatures::from_fn(support))
    }

    fn old_kernel() -> Report {
        report(|feature| match feature {
            Feature::BpfLoop | Feature::TaskPtRegs => Support::Absent,
            Feature::RingBuffer => {
                Support::Unknown(Arc::new(io::Error::from_raw_os_error(libc::EPERM)))
            }
            _ => Support::Present,
        })
    }

    #[track_caller]
    fn check(report: &Report, expected: &str) {
        let text = report.to_string();
        assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
    }

    #[test]
    fn text_names_what_is_missing_and_what_happens_instead() {
        let old = old_kernel();
        check(&old, "CAP_BPF                  yes  loading the BPF programs\nCAP_PERFMON");
        check(&old, "bpf_loop                 no   walking user stacks");
        check(
            &old,
            "in Linux 5.17 and newer; without it: user stacks are walked by a bounded loop\n",
        );
        check(&old, "ring buffers             ?    handing samples to the agent\n");
        check(&old, "but here: Operation not permitted");
        check(&old, "\nunwinder                 bounded loop\n");
        check(&old, "\nregisters in the kernel  BTF offsets\n");
        let new = report(|_| Support::Present);
        check(&new, "\nunwinder                 bpf_loop\n");
        check(&new, "\nregisters in the kernel  bpf_task_pt_regs\n");
        assert!(!new.to_string().contains("without it"), "{new}");
        let useless = report(|_| Support::Absent);
        check(&useless, "ring buffers             NO ");
        let denied = io::Error::from_raw_os_error(libc::EPERM);
        let denied = Support::Unknown(Arc::new(denied));
        check(&report(|_| denied.clone()), "\nunwinder                 not known\n");
    }

    #[test]
    fn text_says_whether_waits_are_followed() {
        let lacks = |absent: &[Feature]| {
            let absent = absent.to_vec();
            report(
                move |feature| {
                    if absent.contains(&feature) { Support::Absent } else { Support::Present }
                },
            )
        };
        let waits = "\nwaits                    ";
        check(&lacks(&[]), &format!("{waits}followed; their ends are seen by sched_exit_tp\n"));
        assert!(!lacks(&[]).to_string().contains(" but "));
        let older = lacks(&[Feature::SchedExit, Feature::LockContention]);
        check(
            &older,
            &format!(
                "{waits}followed; their ends are seen by kprobe on finish_task_switch\n{:30}but \
                 waits for locks of the kernel have no address, and spinning is not seen\n",
                ""
            ),
        );
        check(
            &lacks(&[Feature::SwitchState, Feature::LockContention]),
            &format!(
                "{waits}not followed: the kernel has no sched_switch prev_state (Linux 5.18 or \
                 newer): there are no profiles of kinds `offcpu` and `lock`\n"
            ),
        );
        let denied = Support::Unknown(Arc::new(io::Error::from_raw_os_error(libc::EPERM)));
        check(&report(|_| denied.clone()), &format!("{waits}not known\n"));
    }

    #[test]
    fn json_has_the_same() {
        let json = serde_json::to_value(old_kernel()).unwrap();
        let named = |list: &str, name: &str| {
            let lines = json.pointer(list).unwrap().as_array().unwrap();
            lines.iter().find(|line| line["name"] == name).unwrap().clone()
        };
        assert_eq!(named("/rights", "CAP_BPF")["state"], "present");
        let bpf_loop = named("/kernel/features", "bpf_loop");
        assert_eq!(bpf_loop["state"], "absent");
        assert_eq!(bpf_loop["required"], false);
        assert_eq!(bpf_loop["since"], "5.17");
        assert!(bpf_loop.get("reason").is_none());
        let ring = named("/kernel/features", "ring buffers");
        assert_eq!(ring["state"], "unknown");
        assert_eq!(ring["reason"], "Operation not permitted (os error 1)");
        assert_eq!(json["user_stacks"]["unwinder"], "bounded loop");
        assert_eq!(json["waits"], serde_json::json!({ "end": "sched_exit_tp", "lost": [] }));
        let absent = serde_json::to_value(report(|_| Support::Absent)).unwrap();
        assert!(absent["waits"]["problem"].is_string());
        assert!(absent["waits"]["end"].is_null());
    }
}
