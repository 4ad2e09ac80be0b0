//! Builds what goes into a guest: the agent, the program that is its init, and the workload.
//!
//! For this machine's architecture that is the optimised build which the demo uses too. For
//! another one it is built with a target folder of its own, so that neither build makes the
//! other start again, and without optimisation, as it is built for minutes and runs for seconds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::libraries;
use super::machine::Machine;
use crate::command::{cargo, command, repository, run, target_dir};
use crate::programs;
use crate::setup::cross_rustc;

const PACKAGE: &str = "everflame-vm-guest";

/// Programs of the guest with their paths in it. The first is its init.
const PROGRAMS: [(&str, &str); 2] =
    [("everflame-vm-guest", "init"), ("everflame-agent", "bin/everflame-agent")];

/// The workload: in the two ways in which programs meet libc, and with return addresses that
/// the processor signs.
fn workloads(machine: Machine) -> &'static [(&'static str, &'static [&'static str])] {
    match machine {
        Machine::X86_64 => &[("deep", &[]), ("deep-static", &["-static"])],
        Machine::Aarch64 => &[
            ("deep", &[]),
            ("deep-static", &["-static"]),
            ("deep-signed", &["-mbranch-protection=standard"]),
        ],
    }
}

/// As its source says.
const WORKLOAD_FLAGS: [&str; 6] = [
    "-O2",
    "-fomit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-inline",
    "-fasynchronous-unwind-tables",
    "-pthread",
];

/// A file of the guest.
pub(super) struct File {
    /// Where it is here.
    pub(super) source: PathBuf,
    /// Where it is there, without the leading slash.
    pub(super) path: String,
}

/// Builds everything and lists it.
pub(super) fn guest(machine: Machine) -> Result<Vec<File>> {
    let built = build(machine)?;
    let folder = target_dir().join("vm").join(machine.name());
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut files = Vec::new();
    for (program, path) in PROGRAMS {
        let source = folder.join(program);
        // Debug information of the agent would only fill the guest's memory.
        let mut strip = command(machine.tool("strip"));
        run(strip.arg(built.join(program)).arg("-o").arg(&source))?;
        files.push(File { source, path: path.to_owned() });
    }
    for &(workload, flags) in workloads(machine) {
        let source = folder.join(workload);
        let mut compile = command(machine.tool("gcc"));
        compile.args(WORKLOAD_FLAGS).args(flags);
        compile.arg(repository().join("tests/workloads/deep.c")).arg("-o").arg(&source);
        run(&mut compile)?;
        files.push(File { source, path: format!("bin/{workload}") });
    }
    let programs: Vec<&Path> = files.iter().map(|file| file.source.as_path()).collect();
    let libraries = libraries::of(&programs, machine)?;
    files.extend(libraries);
    Ok(files)
}

/// Returns the folder with the programs.
fn build(machine: Machine) -> Result<PathBuf> {
    if machine.is_native() {
        // With the others, so that cargo selects the same features of dependencies as it
        // does for the demo, and builds them once.
        programs::build_with(&[PACKAGE])?;
        return Ok(target_dir().join("release"));
    }
    if machine == Machine::X86_64 {
        bail!("x86_64 programs can be built on x86_64 only; name an aarch64 kernel");
    }
    let target = machine.target();
    let folder = target_dir().join(format!("vm-{machine}"));
    let mut build = cargo();
    build.args(["build", "--bins", "--target", target, "--package", PACKAGE]);
    build.args(["--package", "everflame-agent", "--target-dir"]).arg(&folder);
    for setting in ["debug=false", "opt-level=0", "package.\"*\".opt-level=0"] {
        build.args(["--config", &format!("profile.dev.{setting}")]);
    }
    let variable = target.replace('-', "_");
    build
        .env(format!("CARGO_TARGET_{}_LINKER", variable.to_ascii_uppercase()), machine.tool("gcc"));
    build.env(format!("CC_{variable}"), machine.tool("gcc"));
    build.env(format!("AR_{variable}"), machine.tool("ar"));
    if let Some(rustc) = cross_rustc(machine) {
        build.env("RUSTC", rustc);
    }
    run(&mut build)?;
    Ok(folder.join(target).join("debug"))
}
