//! `cargo xtask check`: what does not need the programs to run.
//!
//! The cheapest check comes first, so that a forgotten `cargo fmt` is known in a second.

use anyhow::Result;

use crate::command::{self, cargo, repository};
use crate::{setup, tidy};

pub(crate) fn run() -> Result<()> {
    setup::require(&setup::Args { checks: true, ..setup::Args::default() })?;
    // The BPF programs and the fuzz targets are workspaces of their own.
    let others = ["agent-ebpf/Cargo.toml", "fuzz/Cargo.toml"].map(|path| repository().join(path));

    println!("[check] tidy");
    tidy::check(repository())?;

    println!("[check] formatting");
    command::run(cargo().args(["fmt", "--all", "--check"]))?;
    for manifest in &others {
        command::run(cargo().args(["fmt", "--check", "--manifest-path"]).arg(manifest))?;
    }

    println!("[check] dependency policy");
    for manifest in [repository().join("Cargo.toml")].into_iter().chain(others) {
        let mut deny = cargo();
        deny.args(["deny", "--manifest-path"]).arg(manifest);
        deny.arg("--config").arg(repository().join("deny.toml"));
        deny.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
        command::run(&mut deny)?;
    }

    println!("[check] clippy");
    command::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    println!("[check] all passed");
    Ok(())
}
