//! biolatency of libbpf-tools, which counts requests by how long their disk takes.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use everflame_tests::profile::Sample;
use rustix::process::{Pid, Signal, kill_process};

use crate::say;

use super::workload::Recorded;

/// It, running or with what it has printed.
pub(super) struct Biolatency {
    child: Child,
    output: String,
}

impl Biolatency {
    /// Starts it for one disk. `None` if it is not installed.
    pub(super) fn start(disk: &str) -> Option<Self> {
        let mut command = Command::new("/usr/sbin/biolatency");
        let child = command
            .args(["-d", disk])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        // Its programs are loaded.
        std::thread::sleep(Duration::from_secs(2));
        Some(Self { child, output: String::new() })
    }

    /// Ends it by Ctrl-C, upon which it prints what it has seen.
    pub(super) fn finish(mut self) -> Self {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        self.child.stdout.take().unwrap().read_to_string(&mut self.output).unwrap();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        self.child.wait().unwrap();
        assert!(self.output.contains("->"), "biolatency says {}{errors}", self.output);
        self
    }

    /// (begin in microseconds, count) of each line ` 64 -> 127 : 35 |****|`.
    fn buckets(&self) -> Vec<(u64, f64)> {
        let line = |line: &str| {
            let (from, rest) = line.split_once("->")?;
            let (_, rest) = rest.split_once(':')?;
            let count = rest.split_ascii_whitespace().next()?.parse().ok()?;
            Some((from.trim().parse().ok()?, count))
        };
        self.output.lines().filter_map(line).collect()
    }

    /// Compares counts and percentiles with what was recorded of the same disk.
    pub(super) fn assert_agrees(&self, name: &str, recorded: &Recorded) {
        let theirs: Vec<(u32, f64)> = self
            .buckets()
            .into_iter()
            .map(|(from_us, count)| (from_us.max(1).ilog2(), count))
            .collect();
        let mut ours: Vec<(u32, f64)> = recorded
            .samples
            .iter()
            .filter(|sample| sample.label("event") == "request")
            .filter(|sample| sample.label("device") == recorded.disk.name)
            .map(|sample| (power_of_us(sample), sample.count as f64))
            .collect();
        ours.sort_by_key(|(power, _)| *power);
        let total = |buckets: &[(u32, f64)]| buckets.iter().map(|(_, count)| count).sum::<f64>();
        assert!(super::is_close(
            &format!("{name}: biolatency's count"),
            total(&ours),
            total(&theirs),
            0.02,
        ));
        for percent in [50.0, 90.0, 99.0] {
            let at = |buckets: &[(u32, f64)]| {
                let wanted = total(buckets) * percent / 100.0;
                let mut before = 0.0;
                let reached = buckets.iter().find(|(_, count)| {
                    before += count;
                    before >= wanted
                });
                reached.unwrap().0
            };
            let (ours, theirs) = (at(&ours), at(&theirs));
            say(&format!(
                "{name}: p{percent} is from 2^{ours} us on, by biolatency from 2^{theirs}"
            ));
            assert!(ours.abs_diff(theirs) <= 1, "{name}: p{percent}");
        }
    }
}

/// The power of two of the time at the disk in microseconds, as biolatency reckons it.
fn power_of_us(sample: &Sample) -> u32 {
    let mean_ns = sample.values[super::DEVICE] as f64 / sample.count as f64;
    ((mean_ns / 1000.0) as u64).max(1).ilog2()
}
