//! The programs that a process has on tracepoints, as the kernel shows them.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use aya::programs::loaded_programs;
use everflame_tests::cost::RunTime;

/// An agent's program, by name, and the tracepoint that runs it.
pub(crate) type Hook = (&'static str, &'static str);

/// What an agent follows: the value of its `--kinds`, and those of its programs that are looked at.
#[derive(Clone, Copy)]
pub(crate) struct Followed {
    pub(crate) kinds: &'static str,
    pub(crate) hooks: &'static [Hook],
}

/// One program on each hook: the descriptors in which its process shows it.
pub(crate) struct HookPrograms(Vec<PathBuf>);

impl HookPrograms {
    /// Finds those of a process, once all are attached.
    pub(crate) fn of(pid: u32, followed: Followed) -> Option<Self> {
        let names: HashMap<u64, String> = loaded_programs()
            .filter_map(Result::ok)
            .filter_map(|info| Some((u64::from(info.id()), info.name_as_str()?.to_owned())))
            .collect();
        let mut programs = HashMap::new();
        let mut attached = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.filter_map(Result::ok) {
            let Ok(info) = fs::read_to_string(entry.path()) else { continue };
            let Some(name) = field(&info, "prog_id:").and_then(|id| names.get(&id)) else {
                continue;
            };
            // Links repeat the id of their program.
            if info.contains("link_type:") {
                attached.push(name.as_str());
            } else {
                programs.insert(name.as_str(), entry.path());
            }
        }
        let mut of_hook = |name| attached.contains(&name).then(|| programs.remove(name)).flatten();
        followed.hooks.iter().map(|(name, _)| of_hook(name)).collect::<Option<_>>().map(Self)
    }

    /// What they have run so far, since the statistics were switched on.
    pub(crate) fn run_times(&self) -> Vec<RunTime> {
        let run_time = |path| {
            let info = fs::read_to_string(path).expect("the process runs");
            let number = |name| field(&info, name).expect("the kernel counts runs");
            RunTime { ns: number("run_time_ns:"), runs: number("run_cnt:") }
        };
        self.0.iter().map(run_time).collect()
    }
}

fn field(info: &str, name: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
