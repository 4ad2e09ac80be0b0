//! `cargo xtask setup`: installs what this machine lacks, and says what it did.
//!
//! Each step first looks whether its result is there, so that a second run changes nothing
//! and works without a network. Groups of packages are installed only for those who need
//! them: building by default, running the tests and the checks on request.

mod apt;
mod bpf;
mod vm;

use anyhow::{Context as _, Result, bail};

use crate::command::{self, ask, cargo, command, find};
use crate::vm::Machine;

pub(crate) use self::vm::cross_rustc;

/// The cargo-deny that is known to build with the workspace's compiler.
const CARGO_DENY: &str = "0.20.2";

/// Likewise.
const CARGO_FUZZ: &str = "0.13.2";

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Also what the tests run: go (for `go tool pprof`), python3, node, java, a C++ compiler ...
    #[arg(long)]
    pub(crate) tests: bool,
    /// Also what `cargo xtask check` runs: rustfmt, clippy, cargo-deny
    #[arg(long)]
    pub(crate) checks: bool,
    /// Also what `cargo xtask fuzz` runs: cargo-fuzz, a C++ compiler for libFuzzer
    #[arg(long)]
    pub(crate) fuzz: bool,
    /// Also what `cargo xtask vm` runs: qemu, compilers for aarch64
    #[arg(long)]
    pub(crate) vm: bool,
}

/// The subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    require(args)?;
    say("ready", "`cargo build` builds everything; `cargo xtask demo` shows it at work");
    Ok(())
}

/// What the other subcommands call before they need something.
pub(crate) fn require(args: &Args) -> Result<()> {
    // The C compiler also links Rust programs and compiles the demo's workload.
    require_programs("compiler and linker", &[("gcc", "gcc"), ("ld", "binutils")])?;
    require_c_library()?;
    bpf::set_up()?;
    if args.tests {
        require_programs(
            "programs that tests run",
            &[
                ("go", "golang-go"),
                ("biolatency", "libbpf-tools"),
                ("fio", "fio"),
                ("g++", "g++"),
                ("ip", "iproute2"),
                ("javac", "default-jdk-headless"),
                ("nft", "nftables"),
                ("node", "nodejs"),
                ("openssl", "openssl"),
                ("pgbench", "postgresql"),
                ("python3", "python3"),
                // Has the server, too, under another name, and starts none.
                ("redis-benchmark", "redis-tools"),
                ("sqlite3", "sqlite3"),
                ("xz", "xz-utils"),
            ],
        )?;
    }
    if args.checks {
        require_component("fmt", "rustfmt")?;
        require_component("clippy", "clippy")?;
        require_cargo_tool("cargo-deny", CARGO_DENY)?;
    }
    if args.fuzz {
        require_programs("compiler of libFuzzer", &[("g++", "g++")])?;
        require_cargo_tool("cargo-fuzz", CARGO_FUZZ)?;
    }
    if args.vm {
        require_vm(&[Machine::X86_64, Machine::Aarch64])?;
    }
    Ok(())
}

/// What it takes to build for `machines` and to emulate them.
pub(crate) fn require_vm(machines: &[Machine]) -> Result<()> {
    vm::set_up(machines)
}

/// One line per step, so that a log shows what was changed and what was there.
fn say(step: &str, outcome: &str) {
    println!("[setup] {step} ... {outcome}");
}

/// Programs on `PATH`, each with the Debian package that has it.
fn require_programs(step: &str, programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&(&str, &str)> =
        programs.iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        say(step, "already installed");
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    if !apt::is_available() {
        bail!(
            "missing: {}; install them with your package manager (Debian calls them {})",
            names.join(", "),
            packages.join(", ")
        );
    }
    apt::install(step, &packages)
}

/// The headers and start files of the C library, which gcc alone does not bring.
fn require_c_library() -> Result<()> {
    let step = "C library headers";
    let compiles = ask(command("sh").arg("-c").arg(
        "echo '#include <stdio.h>' | gcc -x c -E - && test -e \"$(gcc -print-file-name=crt1.o)\"",
    ));
    if compiles.is_some() {
        say(step, "already installed");
        return Ok(());
    }
    if !apt::is_available() {
        bail!("gcc finds no C library; install its development files (glibc-devel, libc6-dev)");
    }
    apt::install(step, &["libc6-dev"])
}

/// A cargo subcommand that comes as a component of the toolchain.
fn require_component(subcommand: &str, component: &str) -> Result<()> {
    if ask(cargo().args([subcommand, "--version"])).is_some() {
        say(component, "already installed");
        return Ok(());
    }
    let rustup = find("rustup").with_context(|| {
        format!("`cargo {subcommand}` is missing; install {component} beside your cargo")
    })?;
    say(component, "adding the component");
    command::run(command(rustup).args(["component", "add", component]))
}

/// A cargo subcommand that is built from its source.
fn require_cargo_tool(name: &str, version: &str) -> Result<()> {
    if find(name).is_some() {
        say(name, "already installed");
        return Ok(());
    }
    say(name, "building (1 to 4 minutes)");
    command::run(cargo().args(["install", "--locked", name, "--version", version]))
        .with_context(|| format!("cannot install {name}"))
}
