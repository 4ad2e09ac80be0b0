//! Which kernels are tried, and where their images are kept.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::archive::Suite;
use super::machine::Machine;
use super::say;
use crate::command::{command, run};

/// A kernel that Debian builds, in the flavour for virtual machines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// What `--kernel` calls it.
    pub(super) name: &'static str,
    pub(super) machine: Machine,
    /// The start of its version.
    pub(super) series: &'static str,
    /// The part of Debian's archive that has it: of a release the security updates where they
    /// have it, as that list is short and has the newest builds.
    pub(super) suite: &'static str,
}

/// From the oldest that is supported to the newest that Debian has.
pub(super) const KERNELS: [Kernel; 6] = [
    Kernel { name: "5.10", machine: Machine::X86_64, series: "5.10", suite: "bullseye-security" },
    Kernel { name: "6.1", machine: Machine::X86_64, series: "6.1", suite: "bookworm-security" },
    Kernel { name: "6.12", machine: Machine::X86_64, series: "6.12", suite: "bookworm-backports" },
    Kernel { name: "7", machine: Machine::X86_64, series: "7", suite: "trixie-backports" },
    Kernel { name: "5.10-aarch64", machine: Machine::Aarch64, series: "5.10", suite: "bullseye" },
    Kernel {
        name: "6.1-aarch64",
        machine: Machine::Aarch64,
        series: "6.1",
        suite: "bookworm-security",
    },
];

/// How many builds of a kernel are tried until one can be downloaded.
const MAX_TRIED: usize = 3;

/// For the command line.
pub(super) fn parse(name: &str) -> Result<&'static Kernel, String> {
    KERNELS.iter().find(|kernel| kernel.name == name).ok_or_else(|| {
        let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
        format!("there are {}", names.join(", "))
    })
}

impl Kernel {
    /// Where its image is once it has been fetched.
    pub(super) fn image(&self, cache: &Path) -> PathBuf {
        cache.join("kernels").join(self.name).join("vmlinuz")
    }

    /// Where those of its modules are that guests need.
    pub(super) fn modules(&self, cache: &Path) -> PathBuf {
        cache.join("kernels").join(self.name).join("modules")
    }

    /// Puts its image into the cache, unless there is one and `update` does not ask for the
    /// newest.
    pub(super) fn fetch(&self, cache: &Path, mirror: Option<&str>, update: bool) -> Result<()> {
        let image = self.image(cache);
        let label = image.with_file_name("package");
        let is_whole = image.is_file() && self.modules(cache).is_dir();
        let present = fs::read_to_string(&label).ok().filter(|_| is_whole);
        if let Some(present) = present.as_deref().filter(|_| !update) {
            say(&format!("{}: {present}, cached", self.name));
            return Ok(());
        }
        let suite = Suite::fetch(self.suite, cache, mirror)?;
        let mut packages = suite.kernels(self.series, self.machine)?;
        packages.truncate(MAX_TRIED);
        if present.is_some() && present.as_ref() == packages.first() {
            say(&format!("{}: {} is still the newest", self.name, packages[0]));
            return Ok(());
        }
        let folder = image.parent().unwrap_or(cache);
        // Replaced as a whole, so that an interrupted download leaves nothing half done.
        let new = folder.with_extension("new");
        remove(&new)?;
        fs::create_dir_all(&new).with_context(|| format!("cannot make {}", new.display()))?;
        let (package, deb) = self.download(&suite, &packages, &new)?;
        let files = new.join("files");
        run(command("dpkg-deb").arg("--extract").arg(&deb).arg(&files))?;
        let found = vmlinuz(&files).with_context(|| format!("{package} has no kernel image"))?;
        fs::rename(found, new.join("vmlinuz")).context("cannot keep the kernel image")?;
        fs::remove_file(deb).context("cannot remove the package")?;
        if let Some(release) = package.strip_prefix("linux-binary-") {
            // Newer packages of images have no modules in them.
            let modules = format!("linux-modules-{release}");
            let deb = suite.download(&modules, self.machine, &new)?;
            run(command("dpkg-deb").arg("--extract").arg(&deb).arg(&files))?;
            fs::remove_file(deb).context("cannot remove the package")?;
        }
        keep_modules(&files, &new.join("modules"))?;
        fs::write(new.join("package"), package).context("cannot write to the cache")?;
        remove(&files)?;
        remove(folder)?;
        fs::rename(&new, folder).with_context(|| format!("cannot make {}", folder.display()))
    }

    /// Downloads the first of `packages` that the mirror has: of an old release the list can
    /// have more than that.
    fn download<'a>(
        &self,
        suite: &Suite,
        packages: &'a [String],
        folder: &Path,
    ) -> Result<(&'a str, PathBuf)> {
        let mut errors = Vec::new();
        for package in packages {
            say(&format!("{}: downloading {package}", self.name));
            match suite.download(package, self.machine, folder) {
                Ok(deb) => return Ok((package, deb)),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        if errors.is_empty() {
            bail!("there is no linux-image-{}*-cloud-* in {}", self.series, self.suite);
        }
        bail!("cannot download a kernel {} of {}: {}", self.series, self.suite, errors.join("; "))
    }
}

/// `boot/vmlinuz-VERSION`, or `usr/lib/modules/VERSION/vmlinuz` in newer packages.
fn vmlinuz(files: &Path) -> Option<PathBuf> {
    let modules = entries(&files.join("usr/lib/modules"));
    let mut candidates = entries(&files.join("boot"));
    candidates.extend(modules.iter().flat_map(|version| entries(version)));
    candidates.into_iter().find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
    })
}

/// Modules that guests load, where they are not built into the kernel; none needs another one.
const MODULES: [&str; 1] = ["kernel/drivers/block/loop.ko"];

fn keep_modules(files: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let versions = ["lib/modules", "usr/lib/modules"].map(|dir| entries(&files.join(dir)));
    for (version, module) in versions.iter().flatten().flat_map(|v| MODULES.map(|m| (v, m))) {
        let plain = version.join(module);
        let packed = version.join(format!("{module}.xz"));
        if packed.is_file() {
            run(command("xz").arg("--decompress").arg(&packed))?;
        }
        if let Some(name) = plain.file_name().filter(|_| plain.is_file()) {
            fs::rename(&plain, folder.join(name)).context("cannot keep a module")?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
