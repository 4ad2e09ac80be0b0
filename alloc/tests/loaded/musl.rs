//! The same file in programs that are linked with musl.

use crate::program::{compiled, installed, passes, with_library};

fn check(program: &str, period: &str, arguments: &[&str]) {
    if !installed("musl-gcc") {
        return;
    }
    let program = compiled("musl-gcc", program);
    passes(with_library(program, &[]).env("EVERFLAME_ALLOC_PERIOD", period).args(arguments));
}

#[test]
fn threads_find_what_they_wrote_and_events_match() {
    check("stress", "1", &["4", "5000"]);
    check("stress", "700", &["4", "20000"]);
}

#[test]
fn children_of_a_process_with_threads_go_on() {
    check("forks", "300", &[]);
}

#[test]
fn a_failed_realloc_leaves_the_object_live() {
    check("resize", "1", &[]);
}

#[test]
fn the_semaphore_is_in_the_file_and_the_period_in_the_environment() {
    check("place", "4096", &["4096"]);
}
