//! Programs with known answers, compiled on first use.
//!
//! How a C program is compiled is part of its answer (with frame pointers or without), so it
//! says so itself: the last line of the comment at its top is the command, and is what is run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use crate::program::scratch_dir;

/// The program of `tests/workloads/NAME.c`.
pub fn workload(name: &str) -> PathBuf {
    once(name, |output| {
        compile(name, output);
    })
}

/// The program of `tests/workloads/NAME.go`.
pub fn go_workload(name: &str) -> PathBuf {
    once(&format!("go-{name}"), |output| {
        let mut go = Command::new("go");
        // A file of its own, that needs nothing from elsewhere.
        go.env("GO111MODULE", "off").args(["build", "-o"]).arg(output);
        run(go.arg(source(&format!("{name}.go"))), "go")
    })
}

/// The program of `tests/workloads/NAME.rs`.
pub fn rustc_workload(name: &str) -> PathBuf {
    once(&format!("rustc-{name}"), |output| {
        let mut rustc = Command::new("rustc");
        rustc.args(["--edition", "2024", "-O", "-g"]).arg(source(&format!("{name}.rs")));
        run(rustc.arg("-o").arg(output), "rustc")
    })
}

/// The program of `tests/workloads/NAME.cpp`.
pub fn cxx_workload(name: &str) -> PathBuf {
    once(&format!("cxx-{name}"), |output| {
        let mut cxx = Command::new("c++");
        cxx.args([
            "-O2",
            "-g",
            "-std=c++17",
            "-fomit-frame-pointer",
            "-fno-optimize-sibling-calls",
        ]);
        run(cxx.arg(source(&format!("{name}.cpp"))).arg("-o").arg(output), "c++");
    })
}

/// The program BIN of the package in `tests/workloads/NAME`. What it needs is compiled once and kept, as that
/// may take a minute.
pub fn rust_workload(name: &str, bin: &str) -> PathBuf {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().expect("no compilation has panicked");
    let test = std::env::current_exe().expect("the path of the test");
    let target = test.ancestors().nth(3).expect("a test lies in target/PROFILE/deps");
    let target_dir = target.join("tmp").join(format!("workload-{name}"));
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--locked", "--manifest-path"]);
    cargo.arg(source(name).join("Cargo.toml")).arg("--target-dir").arg(&target_dir);
    run(&mut cargo, "cargo");
    target_dir.join("release").join(bin)
}

/// The directory with the class of `tests/workloads/NAME.java`.
pub fn java_workload(name: &str) -> PathBuf {
    once(&format!("java-{name}"), |output| {
        run(
            Command::new("javac").arg("-d").arg(output).arg(source(&format!("{name}.java"))),
            "javac",
        )
    })
}

/// Compiles a workload to a path of the caller's choice.
pub fn compile(name: &str, output: &Path) -> PathBuf {
    compile_with(name, &[], output);
    output.to_owned()
}

/// Compiles a workload with further arguments, which win over its own.
pub fn compile_with(name: &str, arguments: &[&str], output: &Path) {
    let source = source(&format!("{name}.c"));
    let mut cc = Command::new("cc");
    cc.args(own_arguments(&source)).args(arguments).arg(&source).arg("-o").arg(output);
    run(&mut cc, "cc");
}

/// A file of `tests/workloads`.
pub fn source(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads").join(file)
}

/// `-O2` and so on, of ` * cc -O2 ... NAME.c -o NAME`.
fn own_arguments(source: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(source)
        .unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let command = text.lines().find_map(|line| line.strip_prefix(" * cc "));
    let words = command.unwrap_or_else(|| panic!("{} names no command", source.display()));
    words.split_whitespace().take_while(|word| word.starts_with('-')).map(str::to_owned).collect()
}

/// Builds a program the first time that it is asked for.
pub(crate) fn once(name: &str, build: impl FnOnce(&Path)) -> PathBuf {
    static BUILT: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut built = BUILT.lock().expect("no compilation has panicked");
    if let Some(output) = built.get(name) {
        return output.clone();
    }
    let output = scratch_dir().join(name);
    build(&output);
    built.insert(name.to_owned(), output.clone());
    output
}

/// Runs a compiler.
pub(crate) fn run(command: &mut Command, program: &str) {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{program} (`cargo xtask setup --tests` installs it): {error}")
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
