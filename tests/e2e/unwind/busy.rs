//! Everything busy at once: what share of the stacks of real programs is complete.

use std::time::Duration;

use everflame_tests::busy;

use crate::say;
use crate::take_turn;

#[test]
fn stacks_of_busy_programs_are_complete() {
    let Some(_turn) = take_turn() else { return };
    // While all start at once, an agent without optimisations does not keep up with 1,000
    // copies of stacks a second; the bench, with optimisations, counts from the start.
    let outcomes = busy::measure(Duration::from_secs(4), Duration::from_secs(16), 499);
    for outcome in &outcomes {
        say(&outcome.to_string());
    }
    let failed: Vec<&str> =
        outcomes.iter().filter(|outcome| !outcome.is_met()).map(|outcome| outcome.name).collect();
    assert!(failed.is_empty(), "too many stacks of {failed:?} are not complete");
}
