//! Programs: compiled from `tests/programs`, or installed ones, with the library loaded.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, id};
use std::sync::{Mutex, PoisonError};

use crate::library::library;

/// Compiles `tests/programs/NAME.c`, once, with `compiler`.
pub(crate) fn compiled(compiler: &str, name: &str) -> PathBuf {
    build(compiler, name, name, &["-rdynamic", "-pthread"])
}

/// Compiles it to a shared library.
pub(crate) fn shared(name: &str) -> PathBuf {
    build("cc", name, &format!("{name}.so"), &["-shared", "-fPIC"])
}

fn build(compiler: &str, name: &str, output: &str, flags: &[&str]) -> PathBuf {
    static BUILT: Mutex<Option<HashMap<String, PathBuf>>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let output = format!("{compiler}-{output}");
    if let Some(path) = built.get_or_insert_default().get(&output) {
        return path.clone();
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&output);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name);
    // Another run of these tests may be executing the old one.
    let unfinished = path.with_extension(format!("{}.unfinished", id()));
    let status = Command::new(compiler)
        // Without -fno-builtin the compiler leaves out pairs of malloc and free.
        .args(["-O2", "-g", "-Wall", "-Werror", "-fno-builtin"])
        .args(flags)
        .arg(source.with_extension("c"))
        .arg("-o")
        .arg(&unfinished)
        .arg("-ldl")
        .status()
        .unwrap_or_else(|error| panic!("cannot run {compiler}: {error}"));
    assert!(status.success(), "cannot compile {name}.c: {status}");
    std::fs::rename(&unfinished, &path).expect("cannot rename");
    built.get_or_insert_default().insert(output, path.clone());
    path
}

/// A command with the library loaded, and `more` after it.
pub(crate) fn with_library(program: impl AsRef<std::ffi::OsStr>, more: &[&Path]) -> Command {
    let mut preload = OsString::from(library());
    for path in more {
        preload.push(":");
        preload.push(path);
    }
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", preload).env_remove("EVERFLAME_ALLOC_PERIOD");
    command
}

/// Runs a command that has to succeed and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> String {
    let output = finished(command);
    String::from_utf8(output.stdout).expect("not UTF-8")
}

/// Runs a command that has to succeed.
pub(crate) fn finished(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a test program that says `ok`.
pub(crate) fn passes(command: &mut Command) {
    assert_eq!(output(command), "ok\n", "{command:?}");
}

/// Whether a program is installed; says so if not.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}
