//! The time that BPF programs take for a switch that is not sampled, by the kernel's statistics.
//!
//! Those read a clock before and after each run, and some of that is in the figures; what empty
//! programs seem to take is mostly that.

use everflame_tests::cost::{BpfStats, RunTime, median};

use crate::beside::agent::KindAgent;
use crate::beside::empty::EmptyPrograms;
use crate::beside::hooks::{Followed, HookPrograms};
use crate::followed::{LOCKS, WAITS};
use crate::load::{Load, PIPE, PIPE_PINNED};
use everflame_tests::bench::print;

/// The longest that the agent takes. A thread has one sample in this much waiting, or in a
/// hundred thousand switches.
const PERIOD: [&str; 2] = ["--offcpu-period", "1s"];

const TARGET: &str = "ns (target: at most 250)";

/// Each is some hundred thousand switches.
const MAX_ROUNDS: usize = 3;

pub(crate) fn run(rounds: usize) {
    let rounds = rounds.min(MAX_ROUNDS);
    eprintln!("{rounds} rounds of each load with run time statistics of the BPF programs ...");
    for (load, followed, name) in
        [(PIPE_PINNED, WAITS, "switch"), (PIPE, WAITS, "switch"), (PIPE_PINNED, LOCKS, "locks")]
    {
        let (mut of_agent, mut of_empty) = (Figures::new(followed), Figures::new(followed));
        for _ in 0..rounds {
            // In turns: a shared machine drifts.
            let agent = KindAgent::start(followed, &PERIOD);
            of_agent.add(&agent.programs, load);
            drop(agent);
            let _programs = EmptyPrograms::attach(followed.hooks);
            of_empty.add(&HookPrograms::of(std::process::id(), followed).unwrap(), load);
        }
        of_agent.print(&format!("{name}_{}", load.name), TARGET);
        of_empty.print(&format!("empty_{name}_{}", load.name), "ns");
    }
}

/// One value for each round.
struct Figures {
    followed: Followed,
    means_ns: Vec<Vec<f64>>,
    runs_per_switch: Vec<Vec<f64>>,
    per_switch_ns: Vec<f64>,
}

impl Figures {
    fn new(followed: Followed) -> Self {
        let of_hooks = vec![Vec::new(); followed.hooks.len()];
        let (means_ns, runs_per_switch) = (of_hooks.clone(), of_hooks);
        Self { followed, means_ns, runs_per_switch, per_switch_ns: Vec::new() }
    }

    fn add(&mut self, programs: &HookPrograms, load: Load) {
        let stats = BpfStats::on();
        let before = programs.run_times();
        load.seconds();
        let after = programs.run_times();
        drop(stats);
        let run_times: Vec<RunTime> =
            after.into_iter().zip(before).map(|(after, before)| after.since(before)).collect();
        // `sched_switch` is passed once in each; the scheduler's exit also without one.
        let switches = run_times[0].runs as f64;
        for (at, run_time) in run_times.iter().enumerate() {
            if run_time.runs > 0 {
                self.means_ns[at].push(run_time.mean_ns());
            }
            self.runs_per_switch[at].push(run_time.runs as f64 / switches);
        }
        let ns: u64 = run_times.iter().map(|run_time| run_time.ns).sum();
        self.per_switch_ns.push(ns as f64 / switches);
    }

    fn print(&mut self, group: &str, unit: &str) {
        for (at, (name, _)) in self.followed.hooks.iter().enumerate() {
            if !self.means_ns[at].is_empty() {
                print(group, &format!("{name}_mean"), median(&mut self.means_ns[at]), "ns");
            }
            let runs = median(&mut self.runs_per_switch[at]);
            print(group, &format!("{name}_runs"), runs, "per switch");
        }
        print(group, "all", median(&mut self.per_switch_ns), unit);
    }
}
