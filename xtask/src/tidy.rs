//! File conventions that no other tool checks: each source file says at its top what it is
//! for, and none grows beyond what one sitting can read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

const MAX_LINES: usize = 500;

/// Checks every Rust file below `root`; the error lists all that break a rule.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut problems = Vec::new();
    for path in rust_files(root)? {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path).display();
        problems.extend(problems_of(&text).map(|problem| format!("{name}: {problem}")));
    }
    if !problems.is_empty() {
        bail!("tidy found {} problems:\n  {}", problems.len(), problems.join("\n  "));
    }
    Ok(())
}

/// All `.rs` files, leaving out build results and hidden folders.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let kind =
                entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?;
            if kind.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if kind.is_file() && name.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn problems_of(text: &str) -> impl Iterator<Item = String> {
    let header = (!text.starts_with("//!"))
        .then(|| "does not open with `//!`: say what the file is and why it exists".to_owned());
    let lines = text.lines().count();
    let length = (lines > MAX_LINES)
        .then(|| format!("has {lines} lines, more than {MAX_LINES}: split it by concept"));
    header.into_iter().chain(length)
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINES, problems_of};

    fn check(text: &str, expected: usize) {
        assert_eq!(problems_of(text).count(), expected);
    }

    #[test]
    fn a_file_needs_a_header() {
        check("//! What it is.\nfn main() {}\n", 0);
        check("fn main() {}\n", 1);
        check("", 1);
    }

    #[test]
    fn a_file_has_a_bounded_length() {
        let longest = format!("//! Long.\n{}", "\n".repeat(MAX_LINES - 1));
        check(&longest, 0);
        check(&format!("{longest}\n"), 1);
    }
}
