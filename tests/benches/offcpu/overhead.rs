//! What programs lose that switch all the time: beside nothing, beside programs that do nothing
//! on the same hooks, and beside the agent.
//!
//! All three in each round, beginning with another one each time, and compared within the
//! round: a shared machine drifts.

use everflame_tests::cost::{cpu_seconds, median, quantile};

use crate::agent::OffCpuAgent;
use crate::empty::EmptyPrograms;
use crate::load::{Load, MESSAGING, PIPE, PIPE_PINNED};
use crate::print;

/// What runs beside the load.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Empty,
    Agent,
}

const BESIDE: [Beside; 3] = [Beside::Nothing, Beside::Empty, Beside::Agent];

/// The most that the agent may take more than empty programs, in per cent.
const LOADS: [(Load, f64); 3] = [(PIPE_PINNED, 8.0), (PIPE, 3.0), (MESSAGING, 3.0)];

/// Short ones, so that in each run one ends, with all that it entails.
const WINDOW: [&str; 2] = ["--window", "1s"];

pub(crate) fn run(rounds: usize) {
    eprintln!("{rounds} rounds of each load beside nothing, empty programs and the agent ...");
    for (load, target) in LOADS {
        // The first run reads files.
        load.run();
        let mut seconds = Vec::new();
        let mut agent_cpu = Vec::new();
        for round in 0..rounds {
            let mut of_round = [0.0; 3];
            for turn in 0..BESIDE.len() {
                let at = (round + turn) % BESIDE.len();
                of_round[at] = match BESIDE[at] {
                    Beside::Nothing => load.run(),
                    Beside::Empty => {
                        let _programs = EmptyPrograms::attach();
                        load.run()
                    }
                    Beside::Agent => {
                        let agent = OffCpuAgent::start(&WINDOW);
                        let before = cpu_seconds(agent.process.pid());
                        let elapsed = load.run();
                        let cpu = cpu_seconds(agent.process.pid()) - before;
                        agent_cpu.push(100.0 * cpu / elapsed);
                        elapsed
                    }
                };
            }
            seconds.push(of_round);
        }
        report(load.name, target, &seconds);
        print(load.name, "agent_cpu", median(&mut agent_cpu), "% of one core");
    }
}

fn report(name: &str, target: f64, seconds: &[[f64; 3]]) {
    let [nothing, empty, agent] = [0, 1, 2];
    let column = |at: usize| seconds.iter().map(move |of_round| of_round[at]);
    print(name, "beside_nothing", median(&mut column(nothing).collect::<Vec<_>>()), "s");
    let more = |what: &str, of: usize, than: usize, unit: &str| {
        let pairs = column(of).zip(column(than));
        let mut percent: Vec<f64> = pairs.map(|(of, than)| 100.0 * (of / than - 1.0)).collect();
        print(name, what, median(&mut percent), unit);
        let spread = quantile(&mut percent, 0.75) - quantile(&mut percent, 0.25);
        print(name, &format!("{what}_spread"), spread, "% (interquartile)");
    };
    more("agent_against_empty", agent, empty, &format!("% (target: at most {target})"));
    more("agent_against_nothing", agent, nothing, "%");
    more("empty_against_nothing", empty, nothing, "%");
}
