//! What `cargo xtask vm` needs: qemu, and compilers for the architectures that it emulates.
//!
//! The standard library for another architecture comes from Debian where it packages the
//! compiler (see [`super::bpf`]), else from rustup; the C library and linker from Debian.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::bpf::DEBIAN_RUSTC;
use super::{apt, require_programs, say};
use crate::command::{ask, command, find, run};
use crate::vm::Machine;

pub(super) fn set_up(machines: &[Machine]) -> Result<()> {
    if !apt::is_available() || find("dpkg-deb").is_none() {
        bail!("the kernels are Debian's, and come through its package manager, apt");
    }
    let mut programs: Vec<_> = machines.iter().map(|machine| machine.qemu()).collect();
    // Modules of the kernels are compressed.
    programs.push(("xz", "xz-utils"));
    require_programs("emulators", &programs)?;
    for &machine in machines.iter().filter(|machine| !machine.is_native()) {
        set_up_compilers(machine)?;
    }
    Ok(())
}

/// The compiler to use for an architecture, where it is not cargo's own.
pub(crate) fn cross_rustc(machine: Machine) -> Option<&'static str> {
    ask(command(DEBIAN_RUSTC).args(["--print", "sysroot"]))
        .is_some_and(|root| has_target(&root, machine))
        .then_some(DEBIAN_RUSTC)
}

fn set_up_compilers(machine: Machine) -> Result<()> {
    let arch = machine.debian();
    let name = machine.name().replace('_', "-");
    let gcc = format!("gcc-{name}-linux-gnu");
    let libc = format!("libc6-dev-{arch}-cross");
    apt::install(&format!("C compiler for {arch}"), &[&gcc, &libc])?;

    let step = format!("Rust for {arch}");
    if cross_rustc(machine).is_some() || cargos_compiler_has(machine) {
        say(&step, "already installed");
        return Ok(());
    }
    let library = format!("libstd-rust-web-dev:{arch}");
    if Path::new(DEBIAN_RUSTC).is_file() {
        apt::add_architecture(arch)?;
        if apt::offers(&library) && apt::can_install(&[&library]) {
            apt::install(&step, &[&library])?;
            if cross_rustc(machine).is_some() {
                return Ok(());
            }
        }
    }
    let rustup = find("rustup").with_context(|| {
        format!("no Rust for {arch}: neither does apt have {library} nor is there rustup")
    })?;
    say(&step, "adding rustup's target");
    run(command(rustup).args(["target", "add", machine.target()]))
}

fn cargos_compiler_has(machine: Machine) -> bool {
    ask(command("rustc").args(["--print", "sysroot"]))
        .is_some_and(|root| has_target(&root, machine))
}

fn has_target(sysroot: &str, machine: Machine) -> bool {
    Path::new(sysroot.trim()).join("lib/rustlib").join(machine.target()).is_dir()
}
