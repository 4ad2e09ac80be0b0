//! Debian's package manager: what it offers, and installing from it without surprises.
//!
//! Packages are never removed to make room for ours, recommendations are left out, and the
//! package lists are fetched only when they do not know a package that we need.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

use super::say;
use crate::command::{as_root, ask, command, find, run};

/// Whether this machine has apt.
pub(super) fn is_available() -> bool {
    find("apt-get").is_some() && find("apt-cache").is_some()
}

/// Whether apt can install `package`, according to the lists it has.
pub(super) fn offers(package: &str) -> bool {
    let policy = ask(command("apt-cache").args(["policy", package]).env("LC_ALL", "C"));
    policy.is_some_and(|text| has_candidate(&text))
}

/// Like [`offers`], after fetching new lists if the present ones say no.
pub(super) fn offers_after_update(package: &str) -> Result<bool> {
    if offers(package) {
        return Ok(true);
    }
    update()?;
    Ok(offers(package))
}

/// Whether all of `packages` are installed.
pub(super) fn has_installed(packages: &[&str]) -> bool {
    let mut query = command("dpkg-query");
    query.args(["--show", "--showformat", "${Status}\\n"]).args(packages);
    ask(&mut query).is_some_and(|status| status.lines().all(|line| line.ends_with(" installed")))
}

/// Whether `packages` could be installed without removing anything.
pub(super) fn can_install(packages: &[&str]) -> bool {
    let mut simulation = command("apt-get");
    simulation.args(["install", "--simulate", "--no-remove", "--no-install-recommends"]);
    ask(simulation.args(packages)).is_some()
}

/// Installs what is missing of `packages`.
pub(super) fn install(step: &str, packages: &[&str]) -> Result<()> {
    if has_installed(packages) {
        say(step, "already installed");
        return Ok(());
    }
    if packages.iter().any(|package| !offers(package)) {
        update()?;
    }
    if let Some(unknown) = packages.iter().find(|package| !offers(package)) {
        bail!("apt does not know the package {unknown}; does /etc/apt/sources.list* have `main`?");
    }
    say(step, &format!("installing {}", packages.join(" ")));
    let mut install = apt_get()?;
    install.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
    run(&mut install).with_context(|| format!("cannot install {}", packages.join(", ")))
}

/// Lets packages of another architecture be installed beside those of the machine's own.
pub(super) fn add_architecture(arch: &str) -> Result<()> {
    let present = ask(command("dpkg").arg("--print-foreign-architectures")).unwrap_or_default();
    if present.lines().any(|line| line == arch) {
        return Ok(());
    }
    say("architectures", &format!("adding {arch}"));
    run(as_root("dpkg")?.args(["--add-architecture", arch]))
        .with_context(|| format!("cannot add the architecture {arch}"))?;
    // Whatever was fetched before has none of its packages.
    fetch_lists()
}

/// Fetches new package lists, once: a package that they do not have will not appear.
fn update() -> Result<()> {
    static UPDATED: AtomicBool = AtomicBool::new(false);
    if UPDATED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    fetch_lists()
}

fn fetch_lists() -> Result<()> {
    say("package lists", "updating");
    run(apt_get()?.args(["update", "--quiet"])).context("cannot fetch apt's package lists")
}

fn apt_get() -> Result<Command> {
    // Through env, because sudo passes no variables on.
    let mut command = as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]);
    Ok(command)
}

/// Reads `apt-cache policy`, which prints nothing at all for unknown packages.
fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|version| version.trim() != "(none)")
}

#[cfg(test)]
mod tests {
    use super::has_candidate;

    #[test]
    fn a_package_needs_a_candidate_to_be_offered() {
        let check = |policy, expected| assert_eq!(has_candidate(policy), expected, "{policy:?}");
        check("", false);
        check("rustc-web:\n  Installed: (none)\n  Candidate: (none)\n", false);
        check("rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n", true);
    }
}
