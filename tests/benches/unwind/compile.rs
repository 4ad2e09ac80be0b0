//! From `.eh_frame` to rows: how fast, and how small.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use everflame_tests::cost::median;
use everflame_unwind::{Limits, compile};

use everflame_tests::bench::print;

const ROUNDS: usize = 5;

pub(crate) fn run() {
    eprintln!("tables of large files, the best known of them libLLVM ...");
    let libraries = Path::new("/usr/lib/x86_64-linux-gnu");
    let mut files: Vec<(&str, PathBuf)> = vec![
        ("libc", libraries.join("libc.so.6")),
        ("python3", PathBuf::from("/usr/bin/python3")),
        ("node", PathBuf::from("/usr/bin/node")),
    ];
    files.extend(libllvm().map(|path| ("libLLVM", path)));
    for (name, path) in files {
        let Ok(file) = File::open(&path) else {
            eprintln!("{} is not there", path.display());
            continue;
        };
        let mut seconds = Vec::new();
        let mut stats = None;
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let table = compile(&file, &Limits::default()).unwrap();
            seconds.push(begin.elapsed().as_secs_f64());
            stats = Some(table.stats);
        }
        let stats = stats.unwrap();
        let (seconds, rows) = (median(&mut seconds), stats.rows as f64);
        let name = format!("compile_{name}");
        print(&name, "rows", rows, "");
        print(&name, "bytes_per_row", stats.page_bytes as f64 / rows, "B");
        print(&name, "time", 1e3 * seconds, "ms");
        print(&name, "rows_read_per_second", stats.rows_read as f64 / seconds / 1e6, "M/s");
        print(&name, "rows_per_second", rows / seconds / 1e6, "M/s");
    }
}

/// The largest library of that name.
fn libllvm() -> Option<PathBuf> {
    let libraries = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/llvm-22/lib"].into_iter();
    let entries = libraries.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten();
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libLLVM"))
        })
        .max_by_key(|path| std::fs::metadata(path).map_or(0, |file| file.len()))
}
