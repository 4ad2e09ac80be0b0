//! Frames get their names wherever the code comes from.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use everflame_tests::profile::{self, Sample, total};
use everflame_tests::program::{Running, everflame};
use everflame_tests::workload::{compile, workload};
use tempfile::TempDir;

use crate::take_turn;

fn record_pid(pid: u32, output: &Path) -> Vec<Sample> {
    let recorded = everflame()
        .args(["record", "--rate-hz", "97", "--duration", "3s", "--pid", &pid.to_string(), "-o"])
        .arg(output)
        .output()
        .unwrap();
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    profile::read(output).1
}

fn share(samples: &[Sample], function: &str) -> f64 {
    let having = total(samples.iter().filter(|sample| sample.has(function)));
    having as f64 / total(samples).max(1) as f64
}

#[test]
fn kernel_functions_have_names() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let syscalls = Running::start(Command::new(workload("syscalls")).arg("60"));
    let samples = record_pid(syscalls.pid(), &dir.path().join("f.pb.gz"));
    // From the system call up to the generator; then the program that asked.
    let in_kernel = samples.iter().filter(|sample| {
        sample.has("do_syscall_64") && sample.stack.iter().any(|name| name.contains("random"))
    });
    let in_kernel = total(in_kernel);
    assert!(in_kernel as f64 > 0.9 * total(&samples) as f64, "{in_kernel} of {samples:#?}");
}

#[test]
fn deleted_executable_is_resolved() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let path = compile("burn", &dir.path().join("doomed"));
    let burn = Running::start(Command::new(&path).args(["60", "1"]).stdout(Stdio::null()));
    std::thread::sleep(Duration::from_millis(200));
    std::fs::remove_file(&path).unwrap();
    let samples = record_pid(burn.pid(), &dir.path().join("f.pb.gz"));
    assert!(share(&samples, "hot_path") > 0.5, "{samples:#?}");
}

#[test]
fn executable_with_a_path_that_is_not_text_is_resolved() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let odd = dir.path().join(OsStr::from_bytes(b"odd \xff name"));
    std::fs::copy(workload("burn"), &odd).unwrap();
    // Before the recording, so that it is read from /proc.
    let burn = Running::start(Command::new(&odd).args(["60", "1"]).stdout(Stdio::null()));
    std::thread::sleep(Duration::from_millis(200));
    let samples = record_pid(burn.pid(), &dir.path().join("f.pb.gz"));
    assert!(share(&samples, "hot_path") > 0.5, "{samples:#?}");
}

#[test]
fn executable_in_another_mount_namespace_is_resolved() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let hidden = dir.path().join("hidden");
    std::fs::create_dir(&hidden).unwrap();
    // The file exists only inside: a tmpfs is mounted where there is an empty directory
    // outside.
    let script = format!(
        "mount -t tmpfs tmpfs {hidden} && cp {burn} {hidden}/contained && exec {hidden}/contained 60 1",
        hidden = hidden.display(),
        burn = workload("burn").display(),
    );
    let burn = Running::start(
        Command::new("unshare").args(["--mount", "sh", "-c", &script]).stdout(Stdio::null()),
    );
    std::thread::sleep(Duration::from_millis(500));
    assert!(!hidden.join("contained").exists());
    let samples = record_pid(burn.pid(), &dir.path().join("f.pb.gz"));
    assert!(share(&samples, "hot_path") > 0.5, "{}\n{samples:#?}", burn.log());
}

#[test]
fn generated_code_is_named_by_the_perf_map() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let jit = Running::start(Command::new(workload("jit")).arg("60"));
    std::thread::sleep(Duration::from_millis(200));
    let samples = record_pid(jit.pid(), &dir.path().join("f.pb.gz"));
    let _ = std::fs::remove_file(format!("/tmp/perf-{}.map", jit.pid()));
    assert!(share(&samples, "jitted_loop") > 0.9, "{samples:#?}");
    let main = samples.iter().filter(|sample| sample.has("jitted_loop") && sample.has("main"));
    assert!(total(main) > 0, "its caller is known too");
}

#[test]
fn generated_code_is_named_after_its_process_has_ended() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("f.pb.gz");
    let recorded = everflame()
        .args(["record", "--rate-hz", "97", "-o"])
        .arg(&output)
        .arg("--")
        .arg(workload("jit"))
        .arg("2")
        .output()
        .unwrap();
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    let samples = profile::read(&output).1;
    let _ = std::fs::remove_file(format!("/tmp/perf-{}.map", samples[0].label("pid")));
    assert!(share(&samples, "jitted_loop") > 0.9, "{samples:#?}");
}

#[test]
fn stripped_executable_keeps_build_id_and_offsets_for_later() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let path = compile("burn", &dir.path().join("stripped"));
    let address = symbol_address(&path, "hot_path");
    assert!(Command::new("strip").arg(&path).status().unwrap().success());
    let burn = Running::start(Command::new(&path).args(["60", "1"]).stdout(Stdio::null()));
    let output = dir.path().join("f.pb.gz");
    record_pid(burn.pid(), &output);

    let (profile, _) = profile::read(&output);
    let text = |index: i64| profile.string_table[usize::try_from(index).unwrap()].as_str();
    let mapping = profile
        .mapping
        .iter()
        .find(|mapping| text(mapping.filename).ends_with("/stripped"))
        .unwrap();
    assert_eq!(text(mapping.build_id).len(), 40, "a SHA-1 build id");
    // The linker of this platform maps code at the same offset and address; each sample
    // counts by the offset in the file.
    let in_hot_path = profile.location.iter().filter(|location| {
        location.mapping_id == mapping.id
            && location.line.is_empty()
            && (address..address + 0x60).contains(&location.address)
    });
    assert!(in_hot_path.count() > 0, "{:#x} in {:#?}", address, profile.location);
}

fn symbol_address(path: &Path, symbol: &str) -> u64 {
    let nm = Command::new("nm").arg(path).output().unwrap();
    let table = String::from_utf8(nm.stdout).unwrap();
    let line = table.lines().find(|line| line.ends_with(&format!(" {symbol}"))).unwrap();
    u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
}
