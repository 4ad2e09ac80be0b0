//! Something that uses a disk, recorded, and what the disk counted meanwhile.

use std::process::{Command, Stdio};
use std::time::Duration;

use everflame_tests::disk::{Disk, DiskStat};
use everflame_tests::profile::{Sample, read};
use everflame_tests::program::{Running, everflame, scratch_dir, wait_for};

/// What was recorded of all processes.
pub(super) struct Recorded {
    pub(super) disk: Disk,
    pub(super) counted: DiskStat,
    pub(super) samples: Vec<Sample>,
}

/// Records while `work` goes on.
pub(super) fn record(work: impl FnOnce(&Disk)) -> Recorded {
    let disk = Disk::under(scratch_dir());
    let output = scratch_dir().join("block.pb.gz");
    // What others have written is not to be counted.
    rustix::fs::sync();
    let mut command = everflame();
    // Ended by Ctrl-C.
    command.args(["record", "--kind", "block", "--duration", "10m", "-o"]).arg(&output);
    let mut recording = Running::start(command.stdout(Stdio::null()));
    wait_for("the recording has begun", || is_following(recording.pid()));
    std::thread::sleep(Duration::from_millis(200));
    let before = disk.stat();
    work(&disk);
    rustix::fs::sync();
    let counted = disk.stat().since(before);
    let status = recording.interrupt();
    assert!(status.success(), "{}", recording.log());
    let (_, samples) = read(&output);
    Recorded { disk, counted, samples }
}

/// Records a script.
pub(super) fn shell(script: &str) -> Recorded {
    record(|_| {
        let status = Command::new("sh").args(["-c", script]).status().unwrap();
        assert!(status.success(), "{script}: {status}");
    })
}

/// Whether a process has attached its BPF programs: at exec, and to what requests go through.
fn is_following(pid: u32) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    let links = entries.flatten().filter(|entry| {
        std::fs::read_to_string(entry.path()).is_ok_and(|info| info.contains("link_type:"))
    });
    links.count() >= 5
}
