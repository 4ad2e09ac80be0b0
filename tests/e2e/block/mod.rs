//! Kind `block`, against what the kernel, fio and biolatency say.

mod biolatency;
mod disks;
mod postgres;
mod throttle;
mod workload;

use everflame_tests::disk::Disk;
use everflame_tests::fio::Fio;
use everflame_tests::profile::Sample;
use everflame_tests::program::{everflame, scratch_dir};

use crate::say;
use biolatency::Biolatency;
use workload::Recorded;

const FIO_SECONDS: u32 = 2;

/// How far off counts may be.
const TOLERANCE: f64 = 0.01;

/// The indices of values.
const OPS: usize = 0;
const BYTES: usize = 1;
const QUEUE: usize = 2;
const DEVICE: usize = 3;

fn sum<'a>(samples: impl IntoIterator<Item = &'a Sample>, value: usize) -> f64 {
    samples.into_iter().map(|sample| sample.values[value] as f64).sum()
}

/// Whether the two are as good as equal.
fn is_close(what: &str, seen: f64, truth: f64, tolerance: f64) -> bool {
    let error = (seen - truth) / truth.max(1.0);
    say(&format!("{what}: {seen} seen, {truth} in truth ({:+.2} %)", 100.0 * error));
    error.abs() <= tolerance
}

/// Records until requests and bytes are those of the disk's own counters. The disk is not the test's alone:
/// what others have under way when its counters are read is counted and not seen, so what is off is
/// measured again.
fn measure(name: &str, mut record: impl FnMut() -> Recorded) -> Recorded {
    const MEASUREMENTS: usize = 3;
    for _ in 0..MEASUREMENTS {
        let recorded = record();
        if counts_agree(name, &recorded) {
            return recorded;
        }
    }
    panic!("{name}: not what the disk has counted, {MEASUREMENTS} times");
}

/// Compares requests and bytes with the disk's own counters.
fn counts_agree(name: &str, recorded: &Recorded) -> bool {
    let Recorded { disk, counted, samples, .. } = recorded;
    let requests: Vec<&Sample> = samples
        .iter()
        .filter(|sample| sample.label("event") == "request" && sample.label("device") == disk.name)
        .collect();
    let mut are_told_apart = true;
    for (operation, ops) in ["read", "write", "discard", "flush"].into_iter().zip(counted.ops) {
        let of_operation =
            requests.iter().copied().filter(|sample| sample.label("operation") == operation);
        let seen = sum(of_operation, OPS);
        say(&format!("{name}: {operation} {seen} seen, {ops} counted"));
        // Of the few that are not the program's own there may be a sample more or less.
        let slack = (TOLERANCE * ops as f64).max(64.0);
        are_told_apart &= (seen - ops as f64).abs() <= slack;
    }
    let agrees = |what: &str, value, counted: u64| {
        let seen = sum(requests.iter().copied(), value);
        is_close(&format!("{name}: {what}"), seen, counted as f64, TOLERANCE)
    };
    agrees("operations", OPS, counted.total_ops())
        && agrees("bytes", BYTES, counted.total_bytes())
        && are_told_apart
}

#[test]
fn requests_of_dd_are_what_the_disk_counts() {
    let Some(_turn) = crate::take_turn() else { return };
    let file = scratch_dir().join("dd");
    let script = format!(
        "dd if=/dev/zero of={0} bs=64k count=4000 oflag=direct status=none; \
         dd if={0} of=/dev/null bs=64k iflag=direct status=none",
        file.display()
    );
    let recorded = measure("dd", || workload::shell(&script));
    let dd = recorded.samples.iter().filter(|sample| sample.label("comm") == "dd");
    let with_stack = dd.clone().filter(|sample| {
        sample.stack.iter().any(|name| name.contains("read") || name.contains("write"))
    });
    assert!(sum(with_stack, OPS) >= 0.99 * sum(dd, OPS));
    std::fs::remove_file(file).unwrap();
}

#[test]
fn random_reads_of_fio_are_what_the_disk_counts_and_biolatency_sees() {
    let Some(_turn) = crate::take_turn() else { return };
    for depth in [1, 8, 32] {
        let name = format!("fio at depth {depth}");
        let fio = Fio::random_reads(scratch_dir(), depth, FIO_SECONDS);
        let (mut biolatency, mut result) = (None, None);
        let recorded = measure(&name, || {
            workload::record(|disk| {
                let running = Biolatency::start(&disk.name);
                result = Some(fio.run());
                biolatency = running.map(Biolatency::finish);
            })
        });
        // Before it begins to measure it also reads its own program and writes, to lay out its file.
        let is_read = |sample: &&Sample| {
            let is_submitted = sample.stack.iter().any(|name| name.starts_with("io_submit"));
            sample.label("comm") == "fio" && sample.label("operation") == "read" && is_submitted
        };
        let own: Vec<&Sample> = recorded.samples.iter().filter(is_read).collect();
        let ops = sum(own.iter().copied(), OPS);
        let ns = sum(own.iter().copied(), QUEUE) + sum(own.iter().copied(), DEVICE);
        let result = result.unwrap();
        assert!(ops >= 0.5 * recorded.counted.ops[0] as f64, "{name}: {ops} reads submitted");
        let (latency, whole) = (result.latency_ns, result.whole_latency_ns);
        say(&format!("{name}: {} ns seen, {latency} ns by fio, {whole} with submission", ns / ops));
        // A request is made while fio submits it and ends before fio sees that; how close the two are,
        // `cargo xtask bench io-net` says.
        assert!(ns / ops <= 1.01 * whole);
        biolatency.expect("biolatency is installed").assert_agrees(&name, &recorded);
    }
}

#[test]
fn requests_of_databases_are_what_the_disk_counts() {
    let Some(_turn) = crate::take_turn() else { return };
    let file = scratch_dir().join("insert.db");
    let inserts = "INSERT INTO t VALUES (randomblob(100));".repeat(400);
    let script = format!(
        "sqlite3 {} 'PRAGMA synchronous=FULL; CREATE TABLE t (x); {inserts}' >/dev/null",
        file.display()
    );
    let recorded = measure("sqlite3", || {
        let _ = std::fs::remove_file(&file);
        workload::shell(&script)
    });
    let syncs: Vec<&Sample> = recorded
        .samples
        .iter()
        .filter(|sample| sample.label("event") == "sync" && sample.label("comm") == "sqlite3")
        .collect();
    let count = sum(syncs.iter().copied(), OPS);
    say(&format!("sqlite3: {count} times made durable"));
    assert!(count >= 400.0);
    let by_caller = syncs.iter().copied().filter(|sample| {
        sample.has("fdatasync") || sample.has("fsync") || sample.has("__x64_sys_fdatasync")
    });
    assert!(sum(by_caller, OPS) >= 0.99 * count);
}

#[test]
fn requests_of_postgresql_are_what_the_disk_counts() {
    let Some(_turn) = crate::take_turn() else { return };
    let server = postgres::Postgres::start();
    let recorded = measure("pgbench", || workload::record(|_| server.bench(4)));
    let writes = recorded.samples.iter().filter(|sample| {
        sample.label("comm") == "postgres" && sample.label("operation") == "write"
    });
    assert!(sum(writes, OPS) > 100.0);
}

/// What `everflame io` says of fio.
#[test]
fn report_names_disk_process_and_stacks() {
    let Some(_turn) = crate::take_turn() else { return };
    let disk = Disk::under(scratch_dir());
    let fio = Fio::random_reads(scratch_dir(), 1, 2);
    let mut command = everflame();
    let file = scratch_dir().join("io.json");
    command.args(["io", "-o"]).arg(&file).arg("--").args(fio.command());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let rows = report["operations"].as_array().unwrap();
    let row = rows.iter().find(|row| row["comm"] == "fio" && row["operation"] == "read").unwrap();
    assert_eq!(row["device"], disk.name.as_str());
    assert!(row["ops"].as_i64().unwrap() > 100, "{row}");
    assert!(row["device_time"]["p99_ns"].as_i64() >= row["device_time"]["p50_ns"].as_i64());
    assert!(!row["histogram"].as_array().unwrap().is_empty());
}
