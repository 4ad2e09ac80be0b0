//! What a sampled object costs its process, from the trap at its allocation to the one at its end, with an agent
//! that takes the stack: pairs of `malloc` and `free` of which hardly any is sampled, and of which 1 in 100 is.

use everflame_tests::bench::print;
use everflame_tests::cost::median;

use crate::beside::agent::KindAgent;
use crate::pairs::Pairs;
use crate::service::{LIVE, LIVE_ONLY, library};

const PAIRS: &str = "2000000";

/// Of objects of 64 bytes.
const PERIODS: [(&str, f64); 2] = [("67108864", 1e-6), ("6400", 0.01)];

pub(crate) fn run(rounds: usize) {
    let Some(library) = library() else {
        eprintln!("the library is not built: `cargo xtask bench alloc` does that");
        return;
    };
    eprintln!(
        "{rounds} rounds of {PAIRS} pairs, with an agent that samples 1 in 100 or hardly any ..."
    );
    let _agent = KindAgent::start(LIVE, LIVE_ONLY);
    let library = library.to_string_lossy().into_owned();
    let mut programs = PERIODS.map(|(period, _)| {
        Pairs::start(PAIRS, &[("LD_PRELOAD", &library), ("EVERFLAME_ALLOC_PERIOD", period)])
    });
    let mut costs = Vec::new();
    let mut idle = Vec::new();
    for _ in 0..rounds {
        let [few, many] = &mut programs;
        let (few, many) = (few.ns("malloc"), many.ns("malloc"));
        let share = 1.0 - (-PERIODS[1].1).exp();
        costs.push((many - few) / share / 1000.0);
        idle.push(few);
    }
    print("object", "pair_hardly_sampled", median(&mut idle), "ns");
    print("object", "sampled", median(&mut costs), "us an object");
}
