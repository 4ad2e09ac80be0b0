//! fio at full speed: random reads of 4 KiB past the page cache, 32 at a time, beside nothing, beside programs
//! that do nothing on the same tracepoints, and beside an agent with `--kinds block`, in turns.

use everflame_tests::bench::{print, print_percent};
use everflame_tests::cost::{BpfStats, cpu_seconds, median};
use everflame_tests::fio::{Fio, Result};

use crate::beside::agent::KindAgent;
use crate::beside::empty::EmptyPrograms;
use crate::beside::hooks::Followed;

const BLOCK: Followed = Followed {
    kinds: "block",
    hooks: &[
        ("block_start", "block_io_start"),
        ("block_issue", "block_rq_issue"),
        ("block_done", "block_rq_complete"),
    ],
};

const DEPTH: u32 = 32;
const SECONDS: u32 = 2;

/// What runs beside it.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Empty,
    Agent,
}

const BESIDE: [Beside; 3] = [Beside::Nothing, Beside::Empty, Beside::Agent];

pub(crate) fn run(rounds: usize) {
    eprintln!("{rounds} rounds of fio beside nothing, empty programs and the agent ...");
    let fio = Fio::random_reads(env!("CARGO_TARGET_TMPDIR").as_ref(), DEPTH, SECONDS);
    fio.run();
    let mut runs = Vec::new();
    for round in 0..rounds {
        let mut of_round = [0.0; BESIDE.len()];
        for turn in 0..BESIDE.len() {
            let at = (round + turn) % BESIDE.len();
            of_round[at] = match BESIDE[at] {
                Beside::Nothing => fio.run(),
                Beside::Empty => {
                    let _programs = EmptyPrograms::attach(BLOCK.hooks);
                    fio.run()
                }
                Beside::Agent => {
                    let _agent = KindAgent::start(BLOCK, &[]);
                    fio.run()
                }
            }
            .per_second();
        }
        runs.push(of_round);
    }
    let [nothing, empty, agent] = [0, 1, 2];
    let mut alone: Vec<f64> = runs.iter().map(|of_round| of_round[nothing]).collect();
    print("fio", "beside_nothing", median(&mut alone), "reads a second");
    let fewer = |name: &str, of: usize, than: usize, unit: &str| {
        let percent = runs.iter().map(|of_round| 100.0 * (1.0 - of_round[of] / of_round[than]));
        print_percent("fio", name, percent, unit);
    };
    fewer("fewer_with_agent", agent, nothing, "% (target: at most 2)");
    fewer("fewer_with_empty_programs", empty, nothing, "%");
    program_times(&fio);
}

/// What the programs take for each read, by the kernel's statistics, and the agent's own process.
fn program_times(fio: &Fio) {
    let agent = KindAgent::start(BLOCK, &[]);
    let stats = BpfStats::on();
    let (before, cpu_before) = (agent.programs.run_times(), cpu_seconds(agent.process.pid()));
    let result: Result = fio.run();
    let (after, cpu) = (agent.programs.run_times(), cpu_seconds(agent.process.pid()) - cpu_before);
    drop(stats);
    let mut ns = 0;
    for ((name, _), (after, before)) in BLOCK.hooks.iter().zip(after.into_iter().zip(before)) {
        let run_time = after.since(before);
        ns += run_time.ns;
        print("fio", &format!("{name}_mean"), run_time.mean_ns(), "ns");
    }
    print("fio", "programs", ns as f64 / result.reads, "ns a read");
    print("fio", "agent_cpu", 100.0 * cpu / f64::from(SECONDS), "% of one core");
}
