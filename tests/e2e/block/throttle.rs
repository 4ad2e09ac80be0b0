//! A process that may make so many reads a second only: it waits before its requests are made.

use std::time::{Duration, Instant};

use everflame_tests::cgroup::Cgroup;
use everflame_tests::disk::Disk;
use everflame_tests::profile::{ns, read};
use everflame_tests::program::{everflame, scratch_dir};

use crate::say;

const READS: u64 = 120;
const READS_PER_SECOND: u64 = 40;

/// Records a kind of profile of `dd` in the group; its profile and how long it took.
fn record(kind: &str, group: &Cgroup) -> (Vec<everflame_tests::profile::Sample>, Duration) {
    let file = scratch_dir().join("throttled");
    std::fs::write(&file, vec![1; 4096 * READS as usize]).unwrap();
    rustix::fs::sync();
    let output = scratch_dir().join(format!("throttled-{kind}.pb.gz"));
    let dd = group.command("dd".as_ref());
    let mut command = everflame();
    command.args(["record", "--kind", kind, "-o"]).arg(&output).arg("--");
    command.arg(dd.get_program()).args(dd.get_args());
    command.args(["bs=4k", "iflag=direct", "of=/dev/null", "status=none"]);
    command.arg(format!("if={}", file.display()));
    let begin = Instant::now();
    let output_of = command.output().unwrap();
    assert!(output_of.status.success(), "{}", String::from_utf8_lossy(&output_of.stderr));
    (read(&output).1, begin.elapsed())
}

#[test]
fn throttled_reads_wait_off_the_cpu_and_not_in_the_queue() {
    let Some(_turn) = crate::take_turn() else { return };
    let disk = Disk::under(scratch_dir());
    let group = match Cgroup::with_reads(&disk.numbers(), READS_PER_SECOND) {
        Ok(group) => group,
        Err(error) => {
            say(&format!("SKIPPED: reads cannot be limited here: {error}"));
            return;
        }
    };
    let truth_s = (READS - READS_PER_SECOND / 10) as f64 / READS_PER_SECOND as f64;
    let (samples, took) = record("offcpu", &group);
    let of_dd = samples.iter().filter(|sample| sample.label("comm") == "dd");
    let on_disk = of_dd.clone().filter(|sample| sample.label("reason") == "disk");
    let reading = on_disk.clone().filter(|sample| {
        sample.stack.iter().any(|name| name.contains("read") && !name.starts_with("__x64"))
    });
    let (disk_s, reading_s) = (ns(on_disk) / 1e9, ns(reading) / 1e9);
    say(&format!(
        "{disk_s:.2} s waited for the disk, {reading_s:.2} s in reads; {took:.2?} in all"
    ));
    assert!(disk_s >= 0.95 * truth_s, "{disk_s} s of {truth_s} s");
    assert!(reading_s >= 0.99 * disk_s);

    let (samples, _) = record("block", &group);
    let of_dd: Vec<_> = samples
        .iter()
        .filter(|sample| sample.label("comm") == "dd" && sample.label("operation") == "read")
        .collect();
    let ops: i64 = of_dd.iter().map(|sample| sample.values[super::OPS]).sum();
    let queue_ns: i64 = of_dd.iter().map(|sample| sample.values[super::QUEUE]).sum();
    say(&format!("{ops} reads were {} ms in the queue", queue_ns / 1_000_000));
    // What was held back is made by a thread of the kernel when its time has come.
    assert!((1..=READS as i64).contains(&ops));
    // The queue begins behind the throttle.
    assert!((queue_ns as f64) < 0.05e9 * truth_s, "{queue_ns} ns");
}
