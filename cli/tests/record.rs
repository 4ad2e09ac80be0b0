//! `everflame record` for real: it needs a kernel that lets it load BPF programs. Where it
//! does not these tests are skipped, except in CI.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod everflame;

use std::path::Path;
use std::time::{Duration, Instant};

use everflame_profile::{DecodeLimits, decode, top};
use rustix::process::{Pid, Signal, kill_process};

use crate::everflame::{Outcome, everflame, start};

/// A shell that is busy for a moment and then ends.
const BUSY: &str = "#!/bin/sh\ni=0; while [ $i -lt 300000 ]; do i=$((i+1)); done\n";

fn busy_script(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("busy.sh");
    std::fs::write(&path, BUSY).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Whether the recording was permitted; says so when it was not.
fn is_permitted(outcome: &Outcome) -> bool {
    let is_permitted = outcome.code != Some(77);
    if !is_permitted {
        let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(!is_ci, "CI needs BPF for this: {outcome:?}");
        println!("skipped: BPF is not permitted here");
    }
    is_permitted
}

#[test]
fn command_is_recorded_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    busy_script(dir.path());
    let outcome = everflame(dir.path(), "record --rate-hz 997 -o busy.pb.gz -- ./busy.sh");
    if !is_permitted(&outcome) {
        return;
    }
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), ""), "{outcome:?}");
    let bytes = std::fs::read(dir.path().join("busy.pb.gz")).unwrap();
    let profile = decode(&bytes, &DecodeLimits::default()).unwrap();
    assert!(top(&profile, 1).total_value > 0);
    let comms = everflame(dir.path(), "flame busy.pb.gz --format folded").success();
    assert!(comms.lines().any(|line| line.starts_with("busy.sh;")), "{comms}");
}

/// Whether the thread that takes samples is there.
fn is_recording(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .any(|name| name.trim() == "record")
}

#[test]
fn interrupted_recording_writes_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(dir.path(), "record --duration 1h -o host.svg");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    while child.try_wait().unwrap().is_none() && !is_recording(child.id()) {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Something for it to see.
    let busy = Instant::now();
    while busy.elapsed() < Duration::from_secs(1) {
        std::hint::spin_loop();
    }
    // It may have ended by itself, if it was not permitted to start.
    let _ = kill_process(pid, Signal::INT);
    let output = child.wait_with_output().unwrap();
    let outcome = Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    if is_permitted(&outcome) {
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let svg = std::fs::read_to_string(dir.path().join("host.svg")).unwrap();
        assert!(svg.contains("</svg>"));
    }
}

#[test]
fn command_that_cannot_start_is_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = everflame(dir.path(), "record -o none.svg -- ./missing");
    if is_permitted(&outcome) {
        assert_eq!(outcome.code, Some(66), "{outcome:?}");
        assert!(outcome.stderr.contains("cannot start `./missing`"), "{outcome:?}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}

#[test]
fn target_that_does_nothing_gives_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let outcome =
        everflame(dir.path(), "record --comm no-such-name --duration 100ms -o none.folded");
    if is_permitted(&outcome) {
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains("no samples"), "{outcome:?}");
        assert!(!dir.path().join("none.folded").exists());
    }
}
