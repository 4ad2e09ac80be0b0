//! The toolchain for the BPF object: a compiler with a `core` for the BPF target, and
//! bpf-linker.
//!
//! There are two ways to get one. Debian packages a compiler with a prebuilt `core` and the
//! LLVM that goes with it; that is preferred because it needs no nightly and stays the same
//! from one day to the next. Elsewhere it is rustup's nightly with the library's source.
//! `agent/build.rs` looks for the results in the same order: [`DEBIAN_RUSTC`] with the BPF
//! target in its sysroot, else rustup's nightly; and bpf-linker on `PATH` or in cargo's bin.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{apt, say};
use crate::command::{ask, cargo, command, find, line, run};

/// Debian's compiler, which exists beside rustup's.
pub(super) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const BPF_TARGET: &str = "bpfel-unknown-none";
const BPF_LINKER: &str = "0.13.0";

pub(super) fn set_up() -> Result<()> {
    let llvm = if debian_compiler_has_bpf() {
        say("BPF compiler", &format!("already installed ({DEBIAN_RUSTC})"));
        llvm_of(&mut command(DEBIAN_RUSTC))?
    } else if debian_offers_compiler()? {
        apt::install("BPF compiler", &DEBIAN_PACKAGES)?;
        if !debian_compiler_has_bpf() {
            bail!("{DEBIAN_RUSTC} has no {BPF_TARGET} target after installing its packages");
        }
        llvm_of(&mut command(DEBIAN_RUSTC))?
    } else {
        set_up_nightly()?;
        llvm_of(&mut nightly_rustc())?
    };
    set_up_linker(llvm)
}

fn debian_compiler_has_bpf() -> bool {
    ask(command(DEBIAN_RUSTC).args(["--print", "sysroot"]))
        .is_some_and(|root| Path::new(root.trim()).join("lib/rustlib").join(BPF_TARGET).is_dir())
}

fn debian_offers_compiler() -> Result<bool> {
    if !apt::is_available() {
        return Ok(false);
    }
    for package in DEBIAN_PACKAGES {
        if !apt::offers_after_update(package)? {
            say("BPF compiler", &format!("apt has no {package}, taking rustup's nightly"));
            return Ok(false);
        }
    }
    if !apt::can_install(&DEBIAN_PACKAGES) {
        // Another rustc package is installed, and it is not ours to remove.
        let packages = DEBIAN_PACKAGES.join(" and ");
        say("BPF compiler", &format!("{packages} conflict here, taking rustup's nightly"));
        return Ok(false);
    }
    Ok(true)
}

fn set_up_nightly() -> Result<()> {
    let rustup = find("rustup").context(
        "no compiler for BPF: install Debian's rustc-web and libstd-rust-web-dev-bpf where apt \
         has them, or rustup (https://rustup.rs) elsewhere, then run `cargo xtask setup` again",
    )?;
    let sysroot = ask(nightly_rustc().args(["--print", "sysroot"]));
    let has_source = sysroot
        .is_some_and(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library").is_dir());
    if has_source {
        say("BPF compiler", "already installed (rustup's nightly with rust-src)");
        return Ok(());
    }
    say("BPF compiler", "installing rustup's nightly with rust-src");
    run(command(rustup).args([
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ]))
    .context("cannot install rustup's nightly")
}

/// Installs a bpf-linker that can read what a compiler with LLVM `llvm` writes.
fn set_up_linker(llvm: u32) -> Result<()> {
    let step = "bpf-linker";
    if let Some(linker) = find(step) {
        let runs = ask(command(&linker).arg("--version")).is_some();
        match linked_llvm(&linker) {
            _ if !runs => say(step, &format!("{} does not run: replacing", linker.display())),
            // A newer LLVM reads what an older one wrote, not the other way round.
            Some(found) if found < llvm => {
                say(step, &format!("has LLVM {found}, the compiler {llvm}: replacing"));
            }
            _ => {
                say(step, &format!("already installed ({})", linker.display()));
                return Ok(());
            }
        }
    }
    if let Some(prefix) = llvm_prefix(llvm)? {
        say(step, &format!("building with LLVM {llvm} (about a minute)"));
        let mut install = cargo();
        install.args(["install", "--force", "--locked", step, "--version", BPF_LINKER]);
        install.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
        return run(install.env("LLVM_PREFIX", prefix)).context("cannot build bpf-linker");
    }
    if find("cargo-binstall").is_some() {
        say(step, "installing its release binary");
        return run(cargo().args(["binstall", "--no-confirm", "--force", step]))
            .context("cannot install bpf-linker's release binary");
    }
    bail!(
        "bpf-linker is missing and there is no LLVM {llvm} to build it with: install \
         llvm-{llvm}-dev (see https://apt.llvm.org), or cargo-binstall, or put a binary from \
         https://github.com/aya-rs/bpf-linker/releases on PATH; then run `cargo xtask setup` again"
    )
}

/// Where LLVM `major` with its headers is installed, after installing it where apt can.
fn llvm_prefix(major: u32) -> Result<Option<PathBuf>> {
    // A C++ compiler comes in because LLVM's headers need the C++ library.
    let libraries = [&*format!("llvm-{major}-dev"), "zlib1g-dev", "libzstd-dev", "g++"];
    if apt::is_available() && apt::offers_after_update(libraries[0])? {
        apt::install(&format!("LLVM {major}"), &libraries)?;
    }
    let debian = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if debian.join("bin/llvm-config").is_file() {
        return Ok(Some(debian));
    }
    let prefix = [format!("llvm-config-{major}"), "llvm-config".to_owned()]
        .iter()
        .filter_map(|name| find(name))
        .filter(|config| {
            ask(command(config).arg("--version")).and_then(|text| major_of(&text)) == Some(major)
        })
        .find_map(|config| ask(command(config).arg("--prefix")));
    Ok(prefix.map(|prefix| PathBuf::from(prefix.trim())))
}

fn nightly_rustc() -> Command {
    let mut rustc = command("rustup");
    rustc.args(["run", "nightly", "rustc"]);
    rustc
}

fn llvm_of(rustc: &mut Command) -> Result<u32> {
    ask(rustc.args(["--version", "--verbose"]))
        .and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("LLVM version:")).and_then(major_of)
        })
        .with_context(|| format!("cannot read the LLVM version from `{}`", line(rustc)))
}

/// The LLVM that a program loads; `None` when it brings its own, as release binaries do.
fn linked_llvm(program: &Path) -> Option<u32> {
    ask(command("ldd").arg(program)).and_then(|libraries| shared_llvm(&libraries))
}

/// Finds `libLLVM.so.22.1` or `libLLVM-22.so` in what ldd prints.
fn shared_llvm(libraries: &str) -> Option<u32> {
    libraries.lines().find_map(|line| {
        let name = line.trim().strip_prefix("libLLVM")?;
        major_of(name.trim_start_matches(|c: char| !c.is_ascii_digit() && !c.is_whitespace()))
    })
}

/// `22` of ` 22.1.8`.
fn major_of(version: &str) -> Option<u32> {
    let version = version.trim_start();
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{major_of, shared_llvm};

    #[test]
    fn the_major_version_is_the_first_number() {
        let check = |version, expected| assert_eq!(major_of(version), expected, "{version:?}");
        check(" 22.1.8", Some(22));
        check("19", Some(19));
        check("22.1.2-rust-1.95.0-stable\n", Some(22));
        check("", None);
        check("git", None);
    }

    #[test]
    fn the_shared_llvm_is_found_by_its_library_name() {
        let check = |ldd, expected| assert_eq!(shared_llvm(ldd), expected, "{ldd:?}");
        check("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x0)\n", Some(22));
        check("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n\tlibLLVM-21.so => /x (0x0)\n", Some(21));
        check("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n", None);
        check("\tstatically linked\n", None);
    }
}
