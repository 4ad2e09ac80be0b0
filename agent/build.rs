//! Compiles the BPF programs of `agent-ebpf` and leaves the objects in `OUT_DIR` for the
//! agent to embed: one for recent kernels, one for old ones.
//!
//! BPF needs a compiler of its own: Debian's `rustc-web` where it is installed with `core`
//! for the BPF target, else rustup's nightly. When neither is there the build stops; there
//! is no stub object, as an agent without programs would look as if it worked.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const BPF_TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const LINKER: &str = "bpf-linker";

fn main() -> Result<()> {
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest_dir.parent().context("the agent lies in a workspace")?;
    let source = root.join("agent-ebpf");
    for watched in
        ["agent-ebpf/src", "agent-ebpf/Cargo.toml", "agent-ebpf/Cargo.lock", "agent-common/src"]
    {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }

    let path = search_path()?;
    if !is_on(&path, LINKER) {
        bail!("the BPF linker `{LINKER}` is not installed; run `cargo xtask setup`");
    }
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = out_dir.join("bpf");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        // BTF is made from debug information; without it the verifier's log has no lines.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    let debug_log = env::var_os("CARGO_FEATURE_DEBUG_LOG").map(|_| "debug-log");
    for (variable, features) in
        [("EVERFLAME_BPF_OBJECT", None), ("EVERFLAME_BPF_OBJECT_OLD_KERNELS", Some("old-kernels"))]
    {
        let features: Vec<_> = features.into_iter().chain(debug_log).collect();
        let mut build = cargo()?;
        build
            .args(["--release", "--locked", "--target", BPF_TARGET, "--manifest-path"])
            .arg(source.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target_dir)
            .args(["--features", &features.join(",")])
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("PATH", &path)
            // Set by cargo for this build script, not meant for another compiler.
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("CARGO_BUILD_TARGET")
            .env_remove("CARGO_TARGET_DIR");
        let output =
            build.output().with_context(|| format!("cannot run {:?}", build.get_program()))?;
        if !output.status.success() {
            bail!(
                "the BPF programs do not compile; if the toolchain is incomplete, run `cargo xtask setup`:\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let object = out_dir.join(variable);
        let built = target_dir.join(BPF_TARGET).join("release/everflame");
        fs::copy(&built, &object).with_context(|| format!("cannot copy {}", built.display()))?;
        println!("cargo::rustc-env={variable}={}", object.display());
    }
    Ok(())
}

/// Cargo with a compiler for the BPF target.
fn cargo() -> Result<Command> {
    if debian_compiler_has_bpf() {
        let mut cargo = Command::new(env::var("CARGO")?);
        // aya-ebpf uses unstable features of the language.
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").arg("build");
        Ok(cargo)
    } else if rustup_nightly_has_source() {
        let mut cargo = Command::new("rustup");
        cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]).env_remove("RUSTC");
        Ok(cargo)
    } else {
        bail!("no compiler for the BPF target is installed; run `cargo xtask setup`");
    }
}

/// `PATH`, and behind it where `cargo install` puts programs.
fn search_path() -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_bin = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin"));
    Ok(env::join_paths(env::split_paths(&path).chain(cargo_bin))?)
}

fn is_on(path: &std::ffi::OsStr, program: &str) -> bool {
    env::split_paths(path).any(|dir| dir.join(program).is_file())
}

fn debian_compiler_has_bpf() -> bool {
    sysroot(Command::new(DEBIAN_RUSTC))
        .is_some_and(|sysroot| sysroot.join("lib/rustlib").join(BPF_TARGET).is_dir())
}

fn rustup_nightly_has_source() -> bool {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", "nightly", "rustc"]);
    sysroot(rustc).is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library").is_dir())
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| Path::new(sysroot.trim()).to_owned())
}
