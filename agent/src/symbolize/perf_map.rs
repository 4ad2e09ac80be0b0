//! `/tmp/perf-PID.map`: a line `START SIZE name` (hexadecimal) for each piece of code
//! that a runtime generated (tools/perf/Documentation/jit-interface.txt in the kernel).
//!
//! PID is the process's own idea of its id, and `/tmp` is below the process's root. Maps by
//! other users, who could name a process's code as they like, are not read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::foreign_file::{self, FileRange};
use super::jit::CodeMap;
use crate::object::JitProcess;

/// How far a map is read. A JVM's has a few MiB.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Longer lines are skipped.
const MAX_LINE_BYTES: u64 = 8 << 10;

/// How far the map has been read.
#[derive(Default)]
pub(super) struct PerfMap {
    /// Open, so that what is added is found even if the process is gone by then.
    file: Option<File>,
    position: u64,
    failed: bool,
}

impl PerfMap {
    /// Adds the entries written since the last call. Returns whether that failed for the
    /// first time; that there is no map is not a failure.
    pub(super) fn read(&mut self, process: &JitProcess, code: &mut CodeMap) -> bool {
        let name = format!("tmp/perf-{}.map", process.namespace_pid);
        if let Some(root) = &process.root
            && let Ok(file) = foreign_file::open_within(root, Path::new(&name))
            && foreign_file::is_by(&file, process.uid)
            && !self.file.as_ref().is_some_and(|known| foreign_file::is_same(known, &file))
        {
            if self.file.is_some() {
                code.clear();
            }
            *self = Self { file: Some(file), ..Self::default() };
        }
        match self.read_added(code) {
            Ok(()) => false,
            Err(error) => {
                tracing::debug!(pid = process.pid, %error, "cannot read perf map");
                !std::mem::replace(&mut self.failed, true)
            }
        }
    }

    fn read_added(&mut self, code: &mut CodeMap) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let len = file.metadata()?.len().min(MAX_FILE_BYTES);
        if len < self.position {
            // Written anew.
            code.clear();
            self.position = 0;
        }
        let added = FileRange::new(file, self.position, len - self.position);
        let mut reader = BufReader::with_capacity(64 << 10, added);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut read =
                reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? as u64;
            if !line.ends_with(b"\n") {
                if read < MAX_LINE_BYTES {
                    // Not written to its end yet; read again the next time.
                    return Ok(());
                }
                read += reader.skip_until(b'\n')? as u64;
                line.clear();
            }
            self.position += read;
            if let Some((start, size, name)) = parse_line(&line) {
                code.insert(start, size, name, Vec::new());
            }
        }
    }
}

/// `None` for garbage. Some runtimes write `0x` before the numbers.
fn parse_line(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let mut number = || {
        let digits = str::from_utf8(words.next()?).ok()?;
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        u64::from_str_radix(digits, 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = words.next()?.trim_ascii();
    (!name.is_empty()).then_some((start, size, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_lines_are_skipped() {
        let check = |line: &[u8], expected| assert_eq!(parse_line(line), expected);
        check(b"7f00 10 LazyCompile:~f a.js:1\n", Some((0x7f00, 0x10, b"LazyCompile:~f a.js:1")));
        check(b"0x7f00 0x10 f\n", Some((0x7f00, 0x10, b"f")));
        check(b"7f00 10\n", None);
        check(b"7f00 10 \n", None);
        check(b"zz 10 f\n", None);
        check(b"10000000000000000 10 f\n", None);
        check(b"\xff\xfe\n", None);
        check(b"\n", None);
        check(b"", None);
    }
}
