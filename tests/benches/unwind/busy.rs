//! The share of complete stacks while everything is busy at once.

use std::time::Duration;

use everflame_tests::busy;

pub(crate) fn run() {
    const SPAN: Duration = Duration::from_secs(60);
    eprintln!("programs in several languages at once, {SPAN:?} ...");
    for outcome in busy::measure(Duration::ZERO, SPAN, 499) {
        println!("busy {outcome}");
    }
}
