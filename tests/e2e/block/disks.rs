//! Disks that come and go, parts of disks, and volumes made of them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use everflame_tests::disk::Disk;
use everflame_tests::profile::Sample;
use everflame_tests::program::scratch_dir;

use crate::say;

use super::workload::{self, Recorded};
use super::{OPS, TOLERANCE, sum};

const DISK_BYTES: u64 = 64 << 20;

/// A disk that is a file, until it goes out of scope.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn new(name: &str) -> Self {
        let file = scratch_dir().join(name);
        File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
        let mut command = Command::new("losetup");
        let output = command.args(["--find", "--show"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { device: PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()) }
    }

    fn name(&self) -> &str {
        self.device.file_name().and_then(|name| name.to_str()).unwrap()
    }

    fn detach(&self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Requests to a disk by a program.
fn requests<'a>(recorded: &'a Recorded, disk: &'a str) -> impl Iterator<Item = &'a Sample> + Clone {
    recorded
        .samples
        .iter()
        .filter(move |sample| sample.label("event") == "request" && sample.label("device") == disk)
}

/// As close as it gets when there are so many a second that each sample stands for some, chosen at random.
fn assert_close(seen: f64, truth: f64) {
    assert!((seen - truth).abs() <= TOLERANCE * truth, "{seen} seen, {truth} in truth");
}

fn direct_reads(device: &Path, count: u32) -> String {
    format!("dd if={} of=/dev/null bs=4k count={count} iflag=direct status=none", device.display())
}

#[test]
fn disk_that_goes_away_under_load_keeps_its_name() {
    let Some(_turn) = crate::take_turn() else { return };
    let disk = Loop::new("unplugged");
    let counters = Disk::named(disk.name());
    let mut counted = 0;
    let recorded = workload::record(|_| {
        let before = counters.stat();
        let mut reads = Command::new("sh");
        let mut reads = reads.args(["-c", &direct_reads(&disk.device, 12_000)]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        // It goes when the last one who uses it is done.
        disk.detach();
        reads.wait().unwrap();
        counted = counters.stat().since(before).total_ops();
    });
    let of_dd = requests(&recorded, disk.name()).filter(|sample| sample.label("comm") == "dd");
    let seen = sum(of_dd, OPS);
    say(&format!("{seen} requests seen, {counted} counted"));
    assert_close(seen, counted as f64);
    let unknown = requests(&recorded, "unknown").count();
    assert_eq!(unknown, 0);
}

#[test]
fn requests_to_a_part_of_a_disk_are_the_disks() {
    let Some(_turn) = crate::take_turn() else { return };
    let disk = Loop::new("parted");
    let (first, sectors) = (2048, 32 * 1024);
    let part = |verb: &str, rest: &[String]| {
        let mut command = Command::new(verb);
        let output = command.arg(&disk.device).args(rest).output();
        output.is_ok_and(|output| output.status.success())
    };
    let numbers = ["1".to_owned(), first.to_string(), sectors.to_string()];
    if !part("addpart", &numbers) {
        say("SKIPPED: this kernel makes no parts of loop devices");
        return;
    }
    let path = PathBuf::from(format!("{}p1", disk.device.display()));
    let recorded = workload::record(|_| {
        let status = Command::new("sh").args(["-c", &direct_reads(&path, 2000)]).status();
        assert!(status.unwrap().success());
    });
    assert!(part("delpart", &["1".to_owned()]));
    let of_dd = requests(&recorded, disk.name()).filter(|sample| sample.label("comm") == "dd");
    let seen = sum(of_dd, OPS);
    say(&format!("{seen} requests of dd at {}", disk.name()));
    assert_close(seen, 2000.0);
}

#[test]
fn requests_to_a_volume_are_counted_once_at_its_disk() {
    let Some(_turn) = crate::take_turn() else { return };
    let disk = Loop::new("volume");
    let name = format!("everflame-test-{}", std::process::id());
    let table = format!("0 {} linear {} 0", DISK_BYTES / 512, disk.device.display());
    let dmsetup = |arguments: &[&str]| {
        let output = Command::new("dmsetup").args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !dmsetup(&["create", &name, "--noudevsync", "--table", &table]) {
        say("SKIPPED: there is no device mapper here");
        return;
    }
    let recorded = workload::record(|_| {
        let path = Path::new("/dev/mapper").join(&name);
        let status = Command::new("sh").args(["-c", &direct_reads(&path, 2000)]).status();
        assert!(status.unwrap().success());
    });
    assert!(dmsetup(&["remove", "--noudevsync", &name]));
    let all = recorded
        .samples
        .iter()
        .filter(|sample| sample.label("event") == "request" && sample.label("comm") == "dd");
    let at_disk = requests(&recorded, disk.name()).filter(|sample| sample.label("comm") == "dd");
    say(&format!(
        "{} requests of dd, {} at the disk",
        sum(all.clone(), OPS),
        sum(at_disk.clone(), OPS)
    ));
    assert_close(sum(at_disk.clone(), OPS), 2000.0);
    assert_eq!(sum(all, OPS), sum(at_disk, OPS));
}
