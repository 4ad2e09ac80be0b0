//! Whether time on a CPU, waits and run-queue delay of each thread add up to the time that passed.

use std::path::Path;

use everflame_tests::totals::{FULL_SPAN, TOLERANCE, measure};

use everflame_tests::bench::print;

pub(crate) fn run(_rounds: usize) {
    eprintln!("threads that wait and compute, {FULL_SPAN:?} ...");
    let (threads, lost) = measure(FULL_SPAN, Path::new(env!("CARGO_TARGET_TMPDIR")));
    print("totals", "lost", lost, "samples");
    for totals in &threads {
        println!("totals {totals}");
        let unit = format!("% (target: at most {:.2})", 100.0 * TOLERANCE);
        print("totals", &totals.thread.name, 100.0 * totals.error(), &unit);
    }
}
