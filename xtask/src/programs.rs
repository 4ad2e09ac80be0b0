//! The three programs that people run, as optimised builds.

use std::path::PathBuf;

use anyhow::Result;

use crate::command::{cargo, run, target_dir};

/// Builds agent, collector and command line; a second time costs nothing.
pub(crate) fn build() -> Result<()> {
    build_with(&[])
}

/// Builds them together with the programs of other packages.
pub(crate) fn build_with(others: &[&str]) -> Result<()> {
    let packages = ["everflame-agent", "everflame-server", "everflame"];
    let mut build = cargo();
    build.args(["build", "--release", "--bins"]);
    for package in packages.iter().chain(others) {
        build.args(["--package", package]);
    }
    run(&mut build)
}

/// Where [`build`] puts a program.
pub(crate) fn path(name: &str) -> PathBuf {
    target_dir().join("release").join(name)
}
