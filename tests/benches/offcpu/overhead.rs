//! What programs lose that switch all the time: beside nothing, beside programs that do nothing
//! on the same hooks, and beside the agent.
//!
//! All three in each round, beginning with another one each time, and compared within the
//! round: a shared machine drifts.

use std::time::{Duration, Instant};

use everflame_tests::cost::{cpu_seconds, median};

use crate::beside::agent::KindAgent;
use crate::beside::empty::EmptyPrograms;
use crate::followed::WAITS;
use crate::load::{Load, MESSAGING, PIPE, PIPE_PINNED};
use everflame_tests::bench::{print, print_more};

/// What runs beside the load.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Empty,
    Agent,
}

const BESIDE: [Beside; 3] = [Beside::Nothing, Beside::Empty, Beside::Agent];

/// A window of the agent, and what its end entails. A run is shorter and sees none.
const STEADY: Duration = Duration::from_secs(11);

pub(crate) fn run_pipe_pinned(rounds: usize) {
    run(PIPE_PINNED, 8.0, rounds);
}

pub(crate) fn run_pipe(rounds: usize) {
    run(PIPE, 3.0, rounds);
}

pub(crate) fn run_messaging(rounds: usize) {
    run(MESSAGING, 3.0, rounds);
}

/// `target` is the most that the agent may take more than empty programs, in per cent.
fn run(load: Load, target: f64, rounds: usize) {
    eprintln!("{rounds} rounds of {} beside nothing, empty programs and the agent ...", load.name);
    // The first run reads files.
    load.run();
    let mut seconds = Vec::new();
    for round in 0..rounds {
        let mut of_round = [0.0; 3];
        for turn in 0..BESIDE.len() {
            let at = (round + turn) % BESIDE.len();
            of_round[at] = match BESIDE[at] {
                Beside::Nothing => load.seconds(),
                Beside::Empty => {
                    let _programs = EmptyPrograms::attach(WAITS.hooks);
                    load.seconds()
                }
                Beside::Agent => {
                    let _agent = KindAgent::start(WAITS, &[]);
                    load.seconds()
                }
            };
        }
        seconds.push(of_round);
    }
    report(load.name, target, &seconds);
    print(load.name, "agent_cpu", agent_cpu_percent(load), "% of one core");
}

/// What the agent's own process takes beside a load, over a window.
fn agent_cpu_percent(load: Load) -> f64 {
    let agent = KindAgent::start(WAITS, &[]);
    let (before, begin) = (cpu_seconds(agent.process.pid()), Instant::now());
    while begin.elapsed() < STEADY {
        load.run();
    }
    let cpu = cpu_seconds(agent.process.pid()) - before;
    100.0 * cpu / begin.elapsed().as_secs_f64()
}

fn report(name: &str, target: f64, seconds: &[[f64; 3]]) {
    let [nothing, empty, agent] = [0, 1, 2];
    let column = |at: usize| seconds.iter().map(move |of_round| of_round[at]);
    print(name, "beside_nothing", median(&mut column(nothing).collect::<Vec<_>>()), "s");
    let more = |what: &str, of: usize, than: usize, unit: &str| {
        print_more(name, what, column(of).zip(column(than)), unit);
    };
    more("agent_against_empty", agent, empty, &format!("% (target: at most {target})"));
    more("agent_against_nothing", agent, nothing, "%");
    more("empty_against_nothing", empty, nothing, "%");
}
