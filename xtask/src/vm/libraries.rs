//! The shared libraries of programs, also of those that cannot run here.
//!
//! The guest has the dynamic loader and the libraries in the folder where the loader looks
//! first, whatever folder they are in here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::build::File;
use super::machine::Machine;
use crate::command::{ask, command, line};

/// The libraries that `programs` load, theirs too, and the loader.
pub(super) fn of(programs: &[&Path], machine: Machine) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut known = BTreeSet::new();
    let mut unread: Vec<PathBuf> = programs.iter().map(|&program| program.to_owned()).collect();
    while let Some(file) = unread.pop() {
        for name in needed(&file, machine)? {
            let base = name.rsplit('/').next().unwrap_or(&name).to_owned();
            if !known.insert(name.clone()) {
                continue;
            }
            let source = find(&base, machine)?;
            unread.push(source.clone());
            // The loader has a path, libraries have names only.
            let path = match name.strip_prefix('/') {
                Some(path) => path.to_owned(),
                None => format!("lib/{base}"),
            };
            files.push(File { source, path });
        }
    }
    Ok(files)
}

/// Names of libraries, and the path of the loader, as the file has them.
fn needed(file: &Path, machine: Machine) -> Result<Vec<String>> {
    let mut readelf = command(machine.tool("readelf"));
    readelf.args(["--wide", "--dynamic", "--program-headers"]).arg(file).env("LC_ALL", "C");
    let text = ask(&mut readelf).with_context(|| format!("`{}` failed", line(&readelf)))?;
    Ok(parse(&text))
}

/// Reads readelf's
/// `[Requesting program interpreter: /lib/ld-linux-aarch64.so.1]` and
/// `0x0000000000000001 (NEEDED)  Shared library: [libc.so.6]`.
fn parse(readelf: &str) -> Vec<String> {
    readelf
        .lines()
        .filter_map(|line| {
            let name = line
                .split_once("program interpreter: ")
                .or_else(|| line.split_once("(NEEDED)")?.1.split_once('['))?
                .1;
            Some(name.trim_end().trim_end_matches(']').to_owned())
        })
        .collect()
}

/// Asks the compiler, which knows where the libraries of its platform are.
fn find(name: &str, machine: Machine) -> Result<PathBuf> {
    let gcc = machine.tool("gcc");
    let path = ask(command(&gcc).arg(format!("-print-file-name={name}"))).unwrap_or_default();
    let path = PathBuf::from(path.trim());
    // It gives the name back when it does not find the file.
    path.canonicalize()
        .ok()
        .filter(|_| path.is_absolute())
        .with_context(|| format!("{gcc} does not know where {name} is"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn loader_and_libraries_are_read() {
        let text = "
      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000e (SONAME)             Library soname: [libother.so]
";
        assert_eq!(parse(text), ["/lib64/ld-linux-x86-64.so.2", "libc.so.6"]);
        assert!(parse("There is no dynamic section in this file.\n").is_empty());
    }
}
