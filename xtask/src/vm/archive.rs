//! Debian's archive, read by apt itself with lists and settings of our own.
//!
//! The suites that have the kernels are not among the machine's sources, and must not be
//! added to them. So apt gets another root for each, below the cache. It verifies the signature of
//! each suite, and the checksum of each package against it. Which mirror that is, the
//! machine's own sources say.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::machine::Machine;
use crate::command::{ask, command, line, run};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of the archive.
pub(super) struct Suite {
    root: PathBuf,
}

impl Suite {
    /// Fetches the suite's list of packages into a folder below `cache`.
    pub(super) fn fetch(name: &str, cache: &Path, mirror: Option<&str>) -> Result<Self> {
        let mirrors = match mirror {
            // Debian's mirrors have the two side by side.
            Some(uri) => {
                let archive = uri.trim_end_matches('/').to_owned();
                Mirrors { security: format!("{archive}-security"), archive }
            }
            None => Mirrors::of_this_machine()?,
        };
        let suite = Self { root: cache.join("apt").join(name) };
        for folder in ["lists/partial", "archives/partial"] {
            let folder = suite.root.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        // No package counts as installed.
        let source = source(name, &mirrors);
        for (file, text) in [("status", ""), ("sources.list", source.as_str())] {
            let path = suite.root.join(file);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        run(suite.apt("apt-get").args(["--quiet", "--quiet", "update"])).with_context(|| {
            format!("cannot read the suite {name}; `--mirror URI` names another mirror")
        })?;
        Ok(suite)
    }

    /// Names of packages with images of a series of kernels, the newest first.
    pub(super) fn kernels(&self, series: &str, machine: Machine) -> Result<Vec<String>> {
        let mut names = self.apt("apt-cache");
        names.args(["pkgnames", "linux-"]);
        let names = ask(&mut names).with_context(|| format!("`{}` failed", line(&names)))?;
        Ok(newest_first(names.lines(), series, machine))
    }

    /// Downloads and verifies a package into `folder`.
    pub(super) fn download(
        &self,
        package: &str,
        machine: Machine,
        folder: &Path,
    ) -> Result<PathBuf> {
        let mut download = self.apt("apt-get");
        let of_machine = format!("{package}:{}", machine.debian());
        download.args(["--quiet", "--quiet", "download", &of_machine]).current_dir(folder);
        let output = download.output().context("cannot run apt-get")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let entries =
            fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt left no package in {}", folder.display()))
    }

    fn apt(&self, program: &str) -> Command {
        let root = self.root.display();
        let mut apt = command(program);
        apt.env("LC_ALL", "C");
        for option in [
            format!("Dir::Etc::SourceList={root}/sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State={root}"),
            format!("Dir::State::status={root}/status"),
            format!("Dir::Cache={root}"),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures::=arm64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // The user that apt downloads as cannot write to our cache.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            apt.args(["--option", &option]);
        }
        apt
    }
}

/// The parts of the archive by their addresses.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    archive: String,
    security: String,
}

impl Mirrors {
    fn of_this_machine() -> Result<Self> {
        let mut targets = command("apt-get");
        targets.args(["indextargets", "--no-release-info", "--format", "$(RELEASE) $(REPO_URI)"]);
        let targets = ask(targets.arg("Created-By: Packages")).unwrap_or_default();
        Self::among(&targets).context(
            "this machine's apt sources have no Debian release with its security updates; \
             name a mirror with `--mirror URI`",
        )
    }

    /// From lines of suite and address: the two of a release and of its security updates.
    fn among(targets: &str) -> Option<Self> {
        let find = |wanted: &str| {
            targets.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(' '))
        };
        targets.lines().find_map(|line| {
            let (suite, security) = line.split_once(' ')?;
            let archive = find(suite.strip_suffix("-security")?)?;
            Some(Self { archive: archive.to_owned(), security: security.to_owned() })
        })
    }
}

/// A line of `sources.list`.
fn source(suite: &str, mirrors: &Mirrors) -> String {
    let is_security = suite.ends_with("-security");
    archive_source(suite, if is_security { &mirrors.security } else { &mirrors.archive })
}

/// A line of `sources.list` for a suite of Debian's at this address.
pub(crate) fn archive_source(suite: &str, uri: &str) -> String {
    // Elsewhere than on Debian apt may know the keys by another way.
    let signed_by =
        if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    format!("deb {signed_by}{uri} {suite} main\n")
}

/// The packages with the images of a series of kernels. From 7.2 on the image is in a package
/// of its own, and `linux-image` only refers to it.
fn newest_first<'a>(
    names: impl Iterator<Item = &'a str>,
    series: &str,
    machine: Machine,
) -> Vec<String> {
    let flavour = format!("-cloud-{}", machine.debian());
    let mut found: Vec<(&str, bool, &str)> = names
        .filter_map(|name| {
            let image = name.strip_prefix("linux-image-").map(|release| (release, false));
            let binary = name.strip_prefix("linux-binary-").map(|release| (release, true));
            let (release, is_binary) = image.or(binary)?;
            let version = release.strip_suffix(&flavour)?;
            let rest = version.strip_prefix(series)?;
            rest.starts_with('.').then_some((version, is_binary, name))
        })
        .collect();
    found.sort_by(|(a, a_is_binary, _), (b, b_is_binary, _)| {
        compare(b, a).then(b_is_binary.cmp(a_is_binary))
    });
    found.dedup_by_key(|(version, ..)| *version);
    found.into_iter().map(|(.., name)| name.to_owned()).collect()
}

/// Compares versions by their numbers: `6.1.0-9` is older than `6.1.0-48`.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        version
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_a_series_are_found_newest_first() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-48-cloud-amd64",
            "linux-image-6.1.0-48-cloud-amd64-unsigned",
            "linux-image-6.1.0-50-cloud-amd64-dbg",
            "linux-image-6.1.0-49-amd64",
            "linux-image-6.1.0-49-cloud-arm64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
            "linux-binary-7.2.9+deb13-cloud-amd64",
            "linux-binary-7.2.12+deb13-cloud-amd64",
            "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
        ];
        let check = |series, machine, expected: &[&str]| {
            assert_eq!(newest_first(names.into_iter(), series, machine), expected, "{series}");
        };
        check(
            "6.1",
            Machine::X86_64,
            &["linux-image-6.1.0-48-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"],
        );
        check("6.1", Machine::Aarch64, &["linux-image-6.1.0-49-cloud-arm64"]);
        check("6.12", Machine::X86_64, &["linux-image-6.12.9+deb12-cloud-amd64"]);
        check(
            "7",
            Machine::X86_64,
            &["linux-binary-7.2.12+deb13-cloud-amd64", "linux-binary-7.2.9+deb13-cloud-amd64"],
        );
        check("5.10", Machine::X86_64, &[]);
    }

    #[test]
    fn the_mirror_is_that_of_the_release_that_has_security_updates() {
        let check = |targets, expected: Option<(&str, &str)>| {
            let expected = expected.map(|(archive, security)| Mirrors {
                archive: archive.to_owned(),
                security: security.to_owned(),
            });
            assert_eq!(Mirrors::among(targets), expected);
        };
        let targets = "other x://tools\n\
                       suite x://mirror/archive\n\
                       suite-updates x://mirror/archive\n\
                       suite-security x://mirror/security\n";
        check(targets, Some(("x://mirror/archive", "x://mirror/security")));
        check("suite x://mirror/archive\n", None);
        check("", None);
    }
}
