//! What a process costs: CPU time, memory, and the run time of its BPF programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::setpriority_process;

/// The kernel's run time statistics of BPF programs, switched on for as long as this lives:
/// they tax every program of the host.
#[derive(Debug)]
pub struct BpfStats(());

const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl BpfStats {
    /// Switches them on.
    pub fn on() -> Self {
        fs::write(BPF_STATS, "1").expect("root may switch the statistics on");
        Self(())
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        let _ = fs::write(BPF_STATS, "0");
    }
}

/// Run time and number of runs of BPF programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// Nanoseconds.
    pub ns: u64,
    /// Runs.
    pub runs: u64,
}

impl RunTime {
    /// What was added since an earlier look.
    pub fn since(self, before: Self) -> Self {
        Self { ns: self.ns.saturating_sub(before.ns), runs: self.runs.saturating_sub(before.runs) }
    }

    /// Nanoseconds of a run.
    pub fn mean_ns(self) -> f64 {
        self.ns as f64 / self.runs.max(1) as f64
    }
}

/// The descriptors in which a process shows its BPF programs, one for each program.
#[derive(Debug)]
pub struct BpfPrograms(Vec<PathBuf>);

impl BpfPrograms {
    /// Finds them.
    pub fn of(pid: u32) -> Self {
        Self::find(pid, |_| true)
    }

    /// Finds those that perf events run: the samplers.
    pub fn samplers_of(pid: u32) -> Self {
        /// `BPF_PROG_TYPE_PERF_EVENT`
        const PERF_EVENT: u64 = 7;
        Self::find(pid, |info| field(info, "prog_type:") == Some(PERF_EVENT))
    }

    fn find(pid: u32, is_wanted: impl Fn(&str) -> bool) -> Self {
        let mut programs = BTreeMap::new();
        let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process runs");
        for entry in entries.filter_map(Result::ok) {
            let Ok(info) = fs::read_to_string(entry.path()) else { continue };
            if !is_wanted(&info) {
                continue;
            }
            // Perf events that a program is attached to repeat its id.
            if let (Some(id), Some(_)) = (field(&info, "prog_id:"), field(&info, "run_cnt:")) {
                programs.insert(id, entry.path());
            }
        }
        Self(programs.into_values().collect())
    }

    /// What they have run so far, since the statistics were switched on.
    pub fn run_time(&self) -> RunTime {
        let mut sum = RunTime::default();
        for path in &self.0 {
            let Ok(info) = fs::read_to_string(path) else { continue };
            sum.ns += field(&info, "run_time_ns:").unwrap_or(0);
            sum.runs += field(&info, "run_cnt:").unwrap_or(0);
        }
        sum
    }

    /// Looks again and again; the run times of those runs that came one at a time.
    pub fn watch(&self, span: Duration) -> Vec<u64> {
        // Whatever is measured may keep all CPUs busy.
        let _ = setpriority_process(None, -20);
        let end = Instant::now() + span;
        let mut single = Vec::new();
        let mut before = self.run_time();
        while Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
            let now = self.run_time();
            let step = now.since(before);
            if step.runs == 1 {
                single.push(step.ns);
            }
            before = now;
        }
        let _ = setpriority_process(None, 0);
        single
    }
}

fn field(info: &str, name: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// CPU time of a process, without what BPF programs took of others.
pub fn cpu_seconds(pid: u32) -> f64 {
    // /proc/PID/schedstat counts in nanoseconds, but of one thread each.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    tasks
        .filter_map(Result::ok)
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split_whitespace().next()?.parse::<f64>().ok())
        .sum::<f64>()
        / 1e9
}

/// A size from /proc/PID/status, such as `VmHWM`, in MiB.
pub fn status_mib(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.expect("a size in kB") / 1024.0
}

/// The middle of some values; sorts them.
pub fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that this share of all values is not above; sorts them.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
