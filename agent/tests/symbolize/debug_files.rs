//! Stripped binaries and where their symbols are found.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use everflame_agent::object::ObjectFile;
use everflame_agent::symbolize::{SymbolizeConfig, Symbolizer};

use crate::binary::{Built, describe, run};

const INLINED: [&str; 3] = ["inner program.c:4", "middle program.c:7", "outer program.c:10"];

/// A binary with debug information, not stripped yet, and where its functions are.
struct Stripped {
    built: Built,
    outer: (u64, u64),
    hidden: (u64, u64),
}

impl Stripped {
    fn new(options: &[&str]) -> Self {
        let built = Built::c(&[&["-g"], options].concat());
        let (outer, hidden) = (built.function("outer"), built.function("hidden"));
        Self { built, outer, hidden }
    }

    fn in_dir(&self, name: &str) -> PathBuf {
        self.built.dir.path().join(name)
    }

    /// Puts the debug information into a file of its own and takes it out of the binary.
    fn split_to(&self, debug: &Path) {
        fs::create_dir_all(debug.parent().unwrap()).unwrap();
        run(Command::new("objcopy").arg("--only-keep-debug").arg(&self.built.path).arg(debug));
        run(Command::new("strip").arg(&self.built.path));
    }

    fn link_to(&self, debug: &Path) {
        let link = format!("--add-gnu-debuglink={}", debug.display());
        run(Command::new("objcopy").arg(link).arg(&self.built.path));
    }

    fn outer_frames(&self, debug_dirs: &[PathBuf]) -> Vec<Vec<String>> {
        frames(&self.built.object(), self.outer, debug_dirs)
    }
}

fn frames(object: &Arc<ObjectFile>, function: (u64, u64), dirs: &[PathBuf]) -> Vec<Vec<String>> {
    let config = SymbolizeConfig { debug_dirs: dirs.to_vec(), ..SymbolizeConfig::default() };
    let offsets: Vec<u64> = (function.0..function.0 + function.1).collect();
    let lines = Symbolizer::new(config).object(object, &offsets);
    lines.iter().map(|lines| describe(lines)).collect()
}

fn check_inlined(frames: &[Vec<String>]) {
    assert!(frames.iter().any(|lines| lines == &INLINED), "{frames:?}");
}

fn check_unresolved(frames: &[Vec<String>]) {
    assert!(frames.iter().all(Vec::is_empty), "{frames:?}");
}

#[test]
fn debuglink_next_to_the_binary_is_followed() {
    for place in ["program.debug", ".debug/program.debug"] {
        // Without a build id, only the checksum connects the two.
        let stripped = Stripped::new(&["-Wl,--build-id=none"]);
        let debug = stripped.in_dir(place);
        stripped.split_to(&debug);
        stripped.link_to(&debug);
        check_inlined(&stripped.outer_frames(&[]));
    }
}

#[test]
fn debuglink_below_a_debug_directory_is_followed() {
    let stripped = Stripped::new(&[]);
    let debug_dir = tempfile::tempdir().unwrap();
    let below = stripped.built.dir.path().strip_prefix("/").unwrap();
    let debug = debug_dir.path().join(below).join("program.debug");
    stripped.split_to(&debug);
    stripped.link_to(&debug);
    check_inlined(&stripped.outer_frames(&[debug_dir.path().to_owned()]));
}

#[test]
fn debug_file_of_another_build_is_not_used() {
    for build_id in ["-Wl,--build-id=none", "-Wl,--build-id"] {
        let stripped = Stripped::new(&[build_id]);
        let debug = stripped.in_dir("program.debug");
        stripped.split_to(&debug);
        stripped.link_to(&debug);
        let other = Stripped::new(&[build_id, "-DOTHER", "-O1"]);
        other.split_to(&other.in_dir("program.debug"));
        fs::copy(other.in_dir("program.debug"), &debug).unwrap();
        check_unresolved(&stripped.outer_frames(&[]));
    }
}

#[test]
fn build_id_directory_is_searched() {
    let stripped = Stripped::new(&["-Wl,--build-id"]);
    let debug_dir = tempfile::tempdir().unwrap();
    let build_id = stripped.built.object().build_id.unwrap().to_string();
    let (first, rest) = build_id.split_at(2);
    let debug = debug_dir.path().join(".build-id").join(first).join(format!("{rest}.debug"));
    stripped.split_to(&debug);
    check_inlined(&stripped.outer_frames(&[debug_dir.path().to_owned()]));
    check_unresolved(&stripped.outer_frames(&[]));
}

#[test]
fn minidebuginfo_names_functions_without_lines() {
    let stripped = Stripped::new(&["-rdynamic"]);
    // As Fedora does it: the symbols that are not dynamic, compressed, in a section.
    let mini = stripped.in_dir("mini");
    run(Command::new("objcopy")
        .args(["-S", "--keep-symbol=hidden"])
        .arg(&stripped.built.path)
        .arg(&mini));
    if Command::new("xz").arg(&mini).status().is_err() {
        eprintln!("skipped: no xz");
        return;
    }
    run(Command::new("strip").arg(&stripped.built.path));
    let section = format!(".gnu_debugdata={}", stripped.in_dir("mini.xz").display());
    run(Command::new("objcopy").arg("--add-section").arg(section).arg(&stripped.built.path));

    let object = stripped.built.object();
    let hidden = frames(&object, stripped.hidden, &[]);
    assert!(hidden.iter().all(|lines| lines == &["hidden"]), "{hidden:?}");
    // What is dynamic is not in it, and still found.
    let outer = frames(&object, stripped.outer, &[]);
    assert!(outer.iter().all(|lines| lines == &["outer"]), "{outer:?}");
}

#[test]
fn stripped_library_still_has_its_exported_functions() {
    let stripped = Stripped::new(&["-rdynamic"]);
    run(Command::new("strip").arg(&stripped.built.path));
    let object = stripped.built.object();
    let outer = frames(&object, stripped.outer, &[]);
    assert!(outer.iter().all(|lines| lines == &["outer"]), "{outer:?}");
    check_unresolved(&frames(&object, stripped.hidden, &[]));
}

#[test]
fn source_lines_can_be_switched_off() {
    let built = Built::c(&["-g"]);
    let (outer, _) = built.function("outer");
    let config = SymbolizeConfig {
        inlines: false,
        source_lines: false,
        debug_dirs: vec![],
        ..SymbolizeConfig::default()
    };
    let lines = Symbolizer::new(config).object(&built.object(), &[outer]);
    assert_eq!(describe(&lines[0]), ["outer"]);
    let config = SymbolizeConfig { inlines: false, ..SymbolizeConfig::default() };
    let lines = Symbolizer::new(config).object(&built.object(), &[outer]);
    assert_eq!(lines[0].len(), 1);
    assert!(lines[0][0].line.is_some());
}
