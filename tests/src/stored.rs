//! What a collector has stored, asked for as people ask.

use std::path::Path;
use std::time::SystemTime;

use crate::profile::{self, Sample};
use crate::program::{Server, everflame};

/// What a collector has of a kind of profile of a process, of all its windows or of those before
/// some time; nothing if there is none.
pub fn stored(
    server: &Server,
    kind: &str,
    selector: &str,
    before: Option<SystemTime>,
    dir: &Path,
) -> Vec<Sample> {
    let output = dir.join("stored.pb.gz");
    let mut top = everflame();
    top.args(["top", "--format", "pprof", "--kind", kind, "--selector", selector, "-o"]);
    top.arg(&output).args(["--server", &server.url()]);
    if let Some(before) = before {
        let unix = before.duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
        top.args(["--to", &unix.as_secs().to_string()]);
    }
    let asked = top.output().expect("everflame can be started");
    // 2: nothing there yet.
    if asked.status.code() == Some(2) {
        return Vec::new();
    }
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    profile::read(&output).1
}

/// Which profiles are of this process.
pub fn of_process(pid: u32) -> String {
    format!("{{pid=\"{pid}\"}}")
}
