//! Which files of the machine are looked at.

use std::path::{Path, PathBuf};

/// Files in which every kind of rule occurs, or that are large; those that are not there are
/// left out.
const ALWAYS: [&str; 14] = [
    "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.*",
    "/usr/lib/x86_64-linux-gnu/libc.so.*",
    "/usr/lib/x86_64-linux-gnu/libcrypto.so.*",
    "/usr/lib/x86_64-linux-gnu/libLLVM*.so*",
    "/usr/lib/x86_64-linux-gnu/libpython3*.so*",
    "/usr/lib/x86_64-linux-gnu/libnode.so*",
    "/usr/lib/x86_64-linux-gnu/libgcc_s.so.*",
    "/usr/bin/node",
    "/usr/bin/python3",
    "/usr/bin/openssl",
    "/usr/lib/jvm/*/lib/server/libjvm.so",
    "/usr/lib/gcc/x86_64-linux-gnu/*/cc1",
    "/usr/lib/go*/pkg/tool/linux_amd64/compile",
    // Debian's cross-building libraries.
    "/usr/aarch64-linux-gnu/lib/*.so*",
];

/// Of the others, one in this many; `EVERFLAME_ORACLE_SAMPLE` overrides it.
const SAMPLE: u64 = 4;

/// Files to look at, sorted, each once.
pub(crate) fn sample() -> Vec<PathBuf> {
    let one_in = std::env::var("EVERFLAME_ORACLE_SAMPLE")
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(SAMPLE);
    let mut files: Vec<PathBuf> = ALWAYS.iter().flat_map(|pattern| matching(pattern)).collect();
    for folder in ["/usr/bin", "/usr/lib/x86_64-linux-gnu"] {
        let mut all = Vec::new();
        list(Path::new(folder), &mut all);
        files.extend(all.into_iter().filter(|path| hash(path).is_multiple_of(one_in)));
    }
    let mut real: Vec<PathBuf> =
        files.iter().filter_map(|path| path.canonicalize().ok()).filter(|p| p.is_file()).collect();
    real.sort();
    real.dedup();
    real
}

/// All files below a folder; links to folders are not followed.
fn list(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list(&entry.path(), into),
            Ok(_) => into.push(entry.path()),
            Err(_) => {}
        }
    }
}

/// FNV-1a: the same files in each run.
fn hash(path: &Path) -> u64 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Paths that match a pattern with `*` for any part of a name.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = found
            .into_iter()
            .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
            .filter(|entry| name_matches(&entry.file_name().to_string_lossy(), part))
            .map(|entry| entry.path())
            .collect();
    }
    found
}

fn name_matches(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| name_matches(rest, after))
        }),
    }
}
