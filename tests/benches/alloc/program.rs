//! The time that the program takes that sees growth, by the kernel's statistics: of a run, and of a
//! process of a load that forks and faults.
//!
//! The statistics read a clock before and after each run, and some of that is in the figures; what the
//! empty program seems to take is mostly that.

use everflame_tests::bench::print;
use everflame_tests::cost::{BpfStats, median};

use crate::beside::agent::KindAgent;
use crate::beside::empty::EmptyPrograms;
use crate::beside::hooks::HookPrograms;
use crate::faults::GROWTH;
use crate::forks;

/// So long that hardly anything is a sample.
const NO_SAMPLES: [&str; 2] = ["--alloc-period", "1GiB"];

/// Each is some hundred thousand runs.
const MAX_ROUNDS: usize = 5;

pub(crate) fn run(rounds: usize) {
    let rounds = rounds.min(MAX_ROUNDS);
    eprintln!("{rounds} rounds of forks with run time statistics of the BPF programs ...");
    let [mut of_agent, mut without_samples, mut of_empty] = [(); 3].map(|()| Figures::default());
    for _ in 0..rounds {
        let agent = KindAgent::start(GROWTH, &[]);
        of_agent.add(&agent.programs);
        drop(agent);
        let agent = KindAgent::start(GROWTH, &NO_SAMPLES);
        without_samples.add(&agent.programs);
        drop(agent);
        let _programs = EmptyPrograms::attach(GROWTH.hooks);
        of_empty.add(&HookPrograms::of(std::process::id(), GROWTH).unwrap());
    }
    of_agent.print("growth");
    without_samples.print("without_samples");
    of_empty.print("empty");
}

/// One value for each round.
#[derive(Default)]
struct Figures {
    mean_ns: Vec<f64>,
    runs_per_process: Vec<f64>,
    share_percent: Vec<f64>,
}

impl Figures {
    fn add(&mut self, programs: &HookPrograms) {
        let stats = BpfStats::on();
        let before = programs.run_times();
        let seconds = forks::run().wall;
        let after = programs.run_times();
        drop(stats);
        let run_time = after[0].since(before[0]);
        self.mean_ns.push(run_time.mean_ns());
        self.runs_per_process.push(run_time.runs as f64 / forks::PROCESSES as f64);
        self.share_percent.push(run_time.ns as f64 / (seconds * 1e7));
    }

    fn print(&mut self, name: &str) {
        print("program", &format!("{name}_mean"), median(&mut self.mean_ns), "ns");
        let runs = median(&mut self.runs_per_process);
        print("program", &format!("{name}_runs"), runs, "per process");
        let share = median(&mut self.share_percent);
        print("program", &format!("{name}_share"), share, "% of the time that the load takes");
    }
}
