//! Debian's package manager: what it offers, and installing from it without surprises.
//!
//! Packages are never removed to make room for ours, recommendations are left out, and the
//! package lists are fetched only when they do not know a package that we need.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

use super::say;
use crate::command::{as_root, ask, command, find, run};
use crate::vm;

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
    if !can_install(packages)
        && let Some(backports) = Backports::of_this_machine()
    {
        return backports.install(step, packages);
    }
    let mut install = apt_get()?;
    install.args(INSTALL).args(packages);
    run(&mut install).with_context(|| format!("cannot install {}", packages.join(", ")))
}

const INSTALL: [&str; 4] = ["install", "--yes", "--no-install-recommends", "--no-remove"];

/// A release and its backports, for a machine that has some packages from there already, which
/// those of the release itself do not go with. The machine's own sources stay as they are.
struct Backports {
    release: String,
    mirror: String,
}

impl Backports {
    fn of_this_machine() -> Option<Self> {
        let os_release = std::fs::read_to_string("/etc/os-release").ok()?;
        let release = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
        let mut targets = command("apt-get");
        targets.args(["indextargets", "--no-release-info", "--format", "$(RELEASE) $(REPO_URI)"]);
        let targets = ask(targets.arg("Created-By: Packages"))?;
        let mirror =
            targets.lines().find_map(|line| line.strip_prefix(release)?.strip_prefix(' '))?;
        Some(Self { release: release.to_owned(), mirror: mirror.to_owned() })
    }

    fn install(&self, step: &str, packages: &[&str]) -> Result<()> {
        let Self { release, mirror } = self;
        say(step, &format!("from {release}-backports, as others of its packages are installed"));
        let dir = std::env::temp_dir().join(format!("everflame-apt-{}", std::process::id()));
        let lists = dir.join("lists");
        std::fs::create_dir_all(lists.join("partial"))
            .with_context(|| format!("cannot make {}", lists.display()))?;
        let sources = dir.join("sources.list");
        let source = |suite: &str| vm::archive_source(suite, mirror);
        let text = source(release) + &source(&format!("{release}-backports"));
        std::fs::write(&sources, text)
            .with_context(|| format!("cannot write {}", sources.display()))?;
        let options = [
            format!("--option=Dir::Etc::SourceList={}", sources.display()),
            "--option=Dir::Etc::SourceParts=-".to_owned(),
            format!("--option=Dir::State::Lists={}", lists.display()),
        ];
        let installed = run(apt_get()?.args(&options).args(["update", "--quiet"]))
            .and_then(|()| {
                let mut install = apt_get()?;
                install.args(&options).args(INSTALL);
                install.arg(format!("--target-release={release}-backports")).args(packages);
                run(&mut install)
            })
            .with_context(|| format!("cannot install {}", packages.join(", ")));
        // Written by root, perhaps; what stays is in the way of nobody.
        let _ = std::fs::remove_dir_all(&dir);
        installed
    }
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
