//! Writes an initramfs: a cpio archive in the format `newc`, as the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst describes it.
//!
//! It is not compressed: that would take longer than reading it.

use std::collections::BTreeSet;
use std::fs::{self, File as Output};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::build::File;

/// Where the guest mounts something.
const MOUNT_POINTS: [&str; 4] = ["dev", "proc", "sys", "tmp"];

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes `files` and all folders that they need to `output`.
pub(super) fn write(files: &[File], output: &Path) -> Result<()> {
    let cannot = || format!("cannot write {}", output.display());
    let file = Output::create(output).with_context(cannot)?;
    let mut archive = Archive { output: BufWriter::new(file), entries: 0 };
    for folder in folders(files) {
        archive.entry(&folder, DIRECTORY, (0, 0), &[]).with_context(cannot)?;
    }
    // Without it, what init says before it mounts /dev is lost.
    archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]).with_context(cannot)?;
    for File { source, path } in files {
        let bytes =
            fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        archive.entry(path, PROGRAM, (0, 0), &bytes).with_context(cannot)?;
    }
    archive.finish().with_context(cannot)
}

/// Writes what is in `base`, and behind it the modules in a folder, as /modules.
pub(super) fn with_modules(base: &Path, modules: &Path, output: &Path) -> Result<()> {
    let cannot = || format!("cannot write {}", output.display());
    fs::copy(base, output).with_context(cannot)?;
    // One archive after the other is one archive, for the kernel.
    let file = Output::options().append(true).open(output).with_context(cannot)?;
    let mut archive = Archive { output: BufWriter::new(file), entries: 0 };
    archive.entry("modules", DIRECTORY, (0, 0), &[]).with_context(cannot)?;
    let entries =
        fs::read_dir(modules).with_context(|| format!("cannot list {}", modules.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", modules.display()))?;
        let path = entry.path();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = format!("modules/{}", entry.file_name().to_string_lossy());
        archive.entry(&name, PROGRAM, (0, 0), &bytes).with_context(cannot)?;
    }
    archive.finish().with_context(cannot)
}

/// Parents come before their children, as the kernel wants it.
fn folders(files: &[File]) -> BTreeSet<String> {
    let mut folders: BTreeSet<String> = MOUNT_POINTS.map(str::to_owned).into();
    for File { path, .. } in files {
        let slashes = path.match_indices('/').map(|(at, _)| at);
        folders.extend(slashes.map(|at| path[..at].to_owned()));
    }
    folders
}

struct Archive<W> {
    output: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
        bytes: &[u8],
    ) -> std::io::Result<()> {
        let length = |bytes: usize| u32::try_from(bytes).map_err(std::io::Error::other);
        self.entries += 1;
        let (inode, links, mtime, owner, group) = (self.entries, 1, 0, 0, 0);
        write!(self.output, "070701")?;
        for field in [
            inode,
            mode,
            owner,
            group,
            links,
            mtime,
            length(bytes.len())?,
            0, // device of the file itself
            0,
            major,
            minor,
            length(name.len() + 1)?,
            0, // no checksum
        ] {
            write!(self.output, "{field:08x}")?;
        }
        const HEADER: usize = 6 + 13 * 8;
        write!(self.output, "{name}\0")?;
        self.pad(HEADER + name.len() + 1)?;
        self.output.write_all(bytes)?;
        self.pad(bytes.len())
    }

    /// Names and contents end at multiples of four bytes.
    fn pad(&mut self, written: usize) -> std::io::Result<()> {
        self.output.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Archive, File, PROGRAM, folders};

    #[test]
    fn entries_are_aligned_and_end_with_a_trailer() {
        for (name, bytes) in [("a", &b"12345"[..]), ("ab", b""), ("abc/d", b"1234")] {
            let mut output = Vec::new();
            let mut archive = Archive { output: &mut output, entries: 0 };
            archive.entry(name, PROGRAM, (0, 0), bytes).expect("memory can be written");
            archive.finish().expect("memory can be written");
            assert_eq!(output.len() % 4, 0, "{name}");
            let text = String::from_utf8(output).expect("all of it is ASCII");
            let expected = format!("07070100000001{PROGRAM:08x}");
            assert!(text.starts_with(&expected), "{text}");
            assert!(text[110..].starts_with(&format!("{name}\0")), "{text}");
            assert!(text.contains("TRAILER!!!\0"), "{text}");
        }
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let file = |path: &str| File { source: PathBuf::new(), path: path.to_owned() };
        let folders: Vec<String> =
            folders(&[file("usr/lib/x/libc.so"), file("init")]).into_iter().collect();
        assert_eq!(folders, ["dev", "proc", "sys", "tmp", "usr", "usr/lib", "usr/lib/x"]);
    }
}
