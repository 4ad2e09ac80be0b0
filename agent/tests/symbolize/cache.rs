//! What is kept, and that it stays within the budget.

use std::sync::Arc;

use everflame_agent::symbolize::{SymbolizeConfig, Symbolizer};

use crate::binary::{Built, describe};

fn with_budget(cache_bytes: usize) -> Symbolizer {
    let config = SymbolizeConfig { cache_bytes, debug_dirs: vec![], ..SymbolizeConfig::default() };
    Symbolizer::new(config)
}

/// A program with many functions, each of which calls an inlined one.
fn large() -> Built {
    let mut source = String::from("volatile int sink;\n");
    for index in 0..400 {
        source.push_str(&format!(
            "static inline __attribute__((always_inline)) void inlined_{index}(int n) {{\n\
             sink += n * {index};\n}}\n\
             __attribute__((noinline)) void function_{index}(int n) {{\ninlined_{index}(n);\n}}\n"
        ));
    }
    source.push_str("int main(int argc, char **argv) {\n");
    (0..400).for_each(|index| source.push_str(&format!("function_{index}(argc);\n")));
    source.push_str("return 0;\n}\n");
    Built::new("large.c", &source, &["gcc", "-O1", "-g"])
}

#[test]
fn frames_come_from_the_cache_the_second_time() {
    let built = Built::c(&["-g"]);
    let (start, size) = built.function("outer");
    let offsets: Vec<u64> = (start..start + size).collect();
    let object = built.object();
    let mut symbolizer = with_budget(24 << 20);
    let first = symbolizer.object(&object, &offsets);
    let again = symbolizer.object(&object, &offsets);
    assert_eq!(first, again);
    let stats = symbolizer.stats();
    assert_eq!((stats.cache_misses, stats.cache_hits), (size, size));
    assert_eq!((stats.resolved, stats.unresolved), (2 * size, 0));
    assert_eq!(stats.binaries_opened, 1);
}

#[test]
fn files_of_one_build_id_share_their_frames() {
    let built = Built::c(&["-g", "-Wl,--build-id"]);
    let (start, _) = built.function("outer");
    let copy = built.dir.path().join("copy");
    std::fs::copy(&built.path, &copy).unwrap();
    let mut symbolizer = with_budget(24 << 20);
    let original = symbolizer.object(&built.object(), &[start]);
    let copied = symbolizer.object(&crate::binary::object(&copy), &[start]);
    assert!(Arc::ptr_eq(&original[0], &copied[0]));
    assert_eq!(symbolizer.stats().cache_hits, 1);
}

#[test]
fn equal_functions_are_one_allocation() {
    let built = Built::c(&["-g"]);
    let (start, size) = built.function("hidden");
    let lines = with_budget(24 << 20).object(&built.object(), &[start, start + size - 1]);
    assert!(Arc::ptr_eq(&lines[0][0].function, &lines[1][0].function));
}

#[test]
fn eviction_keeps_within_the_budget_and_changes_no_answer() {
    let built = large();
    let (start, _) = built.function("function_0");
    let (end, size) = built.function("function_399");
    let offsets: Vec<u64> = (start.min(end)..start.max(end) + size).collect();
    let object = built.object();
    let reference = with_budget(1 << 30).object(&object, &offsets);
    assert!(reference.iter().filter(|lines| lines.len() == 2).count() > 1000);

    let budget = 256 << 10;
    let mut symbolizer = with_budget(budget);
    for _ in 0..3 {
        for (offsets, expected) in offsets.chunks(500).zip(reference.chunks(500)) {
            let mut found = symbolizer.object(&object, offsets);
            // A slow machine takes so long to read the file that it waits some windows
            // until it may do so again.
            for _ in 0..1000 {
                if found == expected {
                    break;
                }
                symbolizer.trim();
                found = symbolizer.object(&object, offsets);
            }
            assert_eq!(found, expected);
        }
        symbolizer.trim();
        let stats = symbolizer.stats();
        assert!(stats.cache_bytes <= budget, "{} bytes", stats.cache_bytes);
    }
    assert!(symbolizer.stats().evictions > 100);
}

#[test]
fn binaries_that_are_not_used_any_more_are_dropped() {
    let mut symbolizer = with_budget(24 << 20);
    let built = Built::c(&["-g"]);
    let (start, _) = built.function("main");
    let lines = symbolizer.object(&built.object(), &[start]);
    let in_use = symbolizer.stats().cache_bytes;
    for _ in 0..10 {
        symbolizer.trim();
    }
    assert!(symbolizer.stats().cache_bytes < in_use / 2);
    // The frame itself is still known.
    assert_eq!(symbolizer.object(&built.object(), &[start]), lines);
    assert_eq!(symbolizer.stats().cache_hits, 1);
    assert_eq!(describe(&lines[0]).last().unwrap(), "main program.c:16");
}
