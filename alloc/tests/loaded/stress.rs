//! Many threads, forks, plugins: nothing is lost, mixed up or told wrongly.

use crate::program::{compiled, passes, shared, with_library};

fn check(program: &str, period: &str, arguments: &[&str]) {
    let program = compiled("cc", program);
    passes(with_library(program, &[]).env("EVERFLAME_ALLOC_PERIOD", period).args(arguments));
}

#[test]
fn threads_find_what_they_wrote_and_events_match() {
    check("stress", "1", &["8", "20000"]);
    check("stress", "700", &["8", "40000"]);
    check("stress", "20000", &["8", "40000"]);
}

#[test]
fn children_of_a_process_with_threads_go_on() {
    check("forks", "300", &[]);
}

#[test]
fn objects_of_an_unloaded_plugin_are_freed() {
    let plugin = shared("plugin");
    check("plugin_host", "100", &[plugin.to_str().expect("not UTF-8")]);
}

#[test]
fn a_failed_realloc_leaves_the_object_live() {
    check("resize", "1", &[]);
}

#[test]
fn a_program_with_its_own_malloc_keeps_it() {
    check("own_malloc", "1", &[]);
}
