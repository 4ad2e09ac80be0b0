//! What a load that forks and faults loses: beside nothing, beside a program that does nothing on the
//! same hook, and beside an agent that samples growth of memory; and beside one that samples CPUs,
//! without and with growth.
//!
//! All in each round, beginning with another one each time.

use std::time::{Duration, Instant};

use everflame_tests::bench::{print, print_more};
use everflame_tests::cost::{cpu_seconds, median};

use crate::beside::agent::KindAgent;
use crate::beside::empty::EmptyPrograms;
use crate::beside::hooks::{Followed, Hook};
use crate::forks::{self, Run};

const HOOKS: &[Hook] = &[("growth", "rss_stat")];

/// Growth alone.
pub(crate) const GROWTH: Followed = Followed { kinds: "alloc", hooks: HOOKS };
const CPU_AND_GROWTH: Followed = Followed { kinds: "cpu,alloc", hooks: HOOKS };
const CPU: Followed = Followed { kinds: "cpu", hooks: &[] };

/// A window of the agent, and what its end entails. A run is shorter and sees none.
const STEADY: Duration = Duration::from_secs(11);

/// What runs beside the load.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Empty,
    Growth,
    Cpu,
    CpuAndGrowth,
}

const BESIDE: [Beside; 5] =
    [Beside::Nothing, Beside::Empty, Beside::Growth, Beside::Cpu, Beside::CpuAndGrowth];

pub(crate) fn run(rounds: usize) {
    eprintln!("{rounds} rounds of forks beside nothing, an empty program and agents ...");
    // The first run reads files.
    forks::run();
    let mut runs = Vec::new();
    for round in 0..rounds {
        let mut of_round = [Run::default(); BESIDE.len()];
        for turn in 0..BESIDE.len() {
            let at = (round + turn) % BESIDE.len();
            of_round[at] = measure(BESIDE[at]);
        }
        runs.push(of_round);
    }
    report("wall", &runs, |run| run.wall);
    report("cpu", &runs, |run| run.cpu);
    print("faults", "agent_cpu", agent_cpu_percent(), "% of one core");
}

/// What the agent's own process takes beside the load, over a window.
fn agent_cpu_percent() -> f64 {
    let agent = KindAgent::start(GROWTH, &[]);
    let (before, begin) = (cpu_seconds(agent.process.pid()), Instant::now());
    while begin.elapsed() < STEADY {
        forks::run();
    }
    let cpu = cpu_seconds(agent.process.pid()) - before;
    100.0 * cpu / begin.elapsed().as_secs_f64()
}

fn report(what: &str, runs: &[[Run; BESIDE.len()]], seconds: fn(&Run) -> f64) {
    const TARGET: &str = "% (target: at most 1)";
    let [nothing, empty, growth, cpu, both] = [0, 1, 2, 3, 4];
    let mut alone: Vec<f64> = runs.iter().map(|of_round| seconds(&of_round[nothing])).collect();
    print("faults", &format!("{what}_beside_nothing"), median(&mut alone), "s");
    let more = |name, of: usize, than: usize, unit| {
        let pairs = runs.iter().map(|of_round| (seconds(&of_round[of]), seconds(&of_round[than])));
        print_more("faults", &format!("{what}_{name}"), pairs, unit);
    };
    more("growth_against_nothing", growth, nothing, TARGET);
    more("growth_against_empty", growth, empty, "%");
    more("empty_against_nothing", empty, nothing, "%");
    more("cpu_kind_against_nothing", cpu, nothing, "%");
    more("both_kinds_against_cpu_kind", both, cpu, TARGET);
}

fn measure(beside: Beside) -> Run {
    let with_agent = |followed| {
        let _agent = KindAgent::start(followed, &[]);
        forks::measure()
    };
    match beside {
        Beside::Nothing => forks::measure(),
        Beside::Empty => {
            let _programs = EmptyPrograms::attach(HOOKS);
            forks::measure()
        }
        Beside::Growth => with_agent(GROWTH),
        Beside::Cpu => with_agent(CPU),
        Beside::CpuAndGrowth => with_agent(CPU_AND_GROWTH),
    }
}
