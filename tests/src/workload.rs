//! Programs with known answers, compiled from C on first use.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use crate::program::scratch_dir;

/// How the workloads are compiled: with frame pointers and source lines.
pub const FLAGS: [&str; 5] =
    ["-O2", "-g", "-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", "-pthread"];

/// The program of `tests/workloads/NAME.c`.
pub fn workload(name: &str) -> PathBuf {
    static COMPILED: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().expect("no compilation has panicked");
    compiled
        .entry(name.to_owned())
        .or_insert_with(|| compile(name, &scratch_dir().join(name)))
        .clone()
}

/// Compiles a workload to a path of the caller's choice.
pub fn compile(name: &str, output: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("workloads/{name}.c"));
    let compiled = Command::new("cc")
        .args(FLAGS)
        .arg(&source)
        .arg("-o")
        .arg(output)
        .output()
        .expect("a C compiler; `cargo xtask setup --tests` installs one");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    output.to_owned()
}
