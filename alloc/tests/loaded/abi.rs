//! What a profiler and a loader need of the library's file.

use std::process::Command;

use crate::library::library;
use crate::program::{compiled, installed, output, passes, with_library};

fn check_period(environment: Option<&str>, expected: &str) {
    let mut command = with_library(compiled("cc", "place"), &[]);
    if let Some(value) = environment {
        command.env("EVERFLAME_ALLOC_PERIOD", value);
    }
    passes(command.arg(expected));
}

#[test]
fn the_semaphore_is_in_the_file_and_the_period_in_the_environment() {
    check_period(None, "524288");
    check_period(Some("4096"), "4096");
    check_period(Some("0"), "524288");
    check_period(Some("12x"), "524288");
    check_period(Some(""), "524288");
    check_period(Some("99999999999999999999"), "524288");
}

#[test]
fn only_the_c_library_is_needed_and_no_new_one() {
    if !installed("readelf") {
        return;
    }
    let dynamic = output(Command::new("readelf").args(["-dW"]).arg(library()));
    let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    assert_eq!(needed.len(), 1, "{needed:?}");
    assert!(needed[0].contains("[libc.so"), "{needed:?}");

    let versions = output(Command::new("readelf").args(["-VW"]).arg(library()));
    for version in versions.split_whitespace().filter_map(|word| word.strip_prefix("GLIBC_2.")) {
        let minor = version.split('.').next().and_then(|minor| minor.parse::<u32>().ok());
        assert!(minor.is_some_and(|minor| minor <= 17), "glibc 2.{version} or newer is needed");
    }
}

#[test]
fn exported_names_are_these() {
    if !installed("nm") {
        return;
    }
    let symbols = output(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let mut names: Vec<&str> =
        symbols.lines().filter_map(|line| line.split_whitespace().last()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "aligned_alloc",
            "calloc",
            "everflame_alloc_dropped",
            "everflame_alloc_live",
            "everflame_alloc_period",
            "everflame_alloc_sampled",
            "everflame_alloc_samples",
            "everflame_alloc_semaphore",
            "everflame_free_sampled",
            "free",
            "free_aligned_sized",
            "free_sized",
            "malloc",
            "memalign",
            "posix_memalign",
            "pvalloc",
            "realloc",
            "reallocarray",
            "valloc",
        ]
    );
}
