//! The library as it is handed out, built once for all tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Path of `libeverflame_alloc.so`, built with the profile `preload`.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(build);
    &LIBRARY
}

fn build() -> PathBuf {
    // A folder of its own: cargo holds a lock on the other one, and this is seldom built again.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("preload");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--profile", "preload", "--package", "everflame-alloc"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cannot run cargo");
    assert!(status.success(), "cannot build the library: {status}");
    target.join("preload/libeverflame_alloc.so")
}
