//! The time that BPF programs take for a switch that is not sampled, by the kernel's statistics.
//!
//! Those read a clock before and after each run, and some of that is in the figures; what empty
//! programs seem to take is mostly that.

use everflame_tests::cost::{BpfStats, RunTime, median};

use crate::agent::OffCpuAgent;
use crate::empty::EmptyPrograms;
use crate::hooks::{HOOKS, HookPrograms};
use crate::load::{Load, PIPE, PIPE_PINNED};
use crate::print;

/// The longest that the agent takes. A thread has one sample in this much waiting, or in a
/// hundred thousand switches.
const PERIOD: [&str; 2] = ["--offcpu-period", "1s"];

const TARGET: &str = "ns (target: at most 250)";

/// Each is some hundred thousand switches.
const MAX_ROUNDS: usize = 3;

pub(crate) fn run(rounds: usize) {
    let rounds = rounds.min(MAX_ROUNDS);
    eprintln!("{rounds} rounds of each load with run time statistics of the BPF programs ...");
    for load in [PIPE_PINNED, PIPE] {
        let (mut of_agent, mut of_empty) = (Figures::default(), Figures::default());
        for _ in 0..rounds {
            // In turns: a shared machine drifts.
            let agent = OffCpuAgent::start(&PERIOD);
            of_agent.add(&agent.programs, load);
            drop(agent);
            let _programs = EmptyPrograms::attach();
            of_empty.add(&HookPrograms::of(std::process::id()).unwrap(), load);
        }
        of_agent.print(&format!("switch_{}", load.name), TARGET);
        of_empty.print(&format!("empty_switch_{}", load.name), "ns");
    }
}

/// One value for each round.
#[derive(Default)]
struct Figures {
    means_ns: [Vec<f64>; 3],
    runs_per_switch: [Vec<f64>; 3],
    per_switch_ns: Vec<f64>,
}

impl Figures {
    fn add(&mut self, programs: &HookPrograms, load: Load) {
        let stats = BpfStats::on();
        let before = programs.run_times();
        load.seconds();
        let after = programs.run_times();
        drop(stats);
        let run_times: [RunTime; 3] = std::array::from_fn(|at| after[at].since(before[at]));
        // `sched_switch` is passed once in each; the scheduler's exit also without one.
        let switches = run_times[0].runs as f64;
        for (at, run_time) in run_times.iter().enumerate() {
            self.means_ns[at].push(run_time.mean_ns());
            self.runs_per_switch[at].push(run_time.runs as f64 / switches);
        }
        let ns: u64 = run_times.iter().map(|run_time| run_time.ns).sum();
        self.per_switch_ns.push(ns as f64 / switches);
    }

    fn print(&mut self, group: &str, unit: &str) {
        for (at, (name, _)) in HOOKS.into_iter().enumerate() {
            print(group, &format!("{name}_mean"), median(&mut self.means_ns[at]), "ns");
            let runs = median(&mut self.runs_per_switch[at]);
            print(group, &format!("{name}_runs"), runs, "per switch");
        }
        print(group, "all", median(&mut self.per_switch_ns), unit);
    }
}
