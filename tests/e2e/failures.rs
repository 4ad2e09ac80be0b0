//! What people are told when something is missing or wrong.

use std::process::{Command, Output};

use everflame_tests::program::{binary, scratch_dir};
use tempfile::TempDir;

use crate::take_turn;

/// Runs `program` under `wrapper`, such as `setpriv ...`.
fn run(wrapper: &[&str], program: &str, arguments: &[&str]) -> Output {
    let binary = binary(program);
    let mut words = wrapper.iter().map(std::ffi::OsStr::new).chain([binary.as_os_str()]);
    Command::new(words.next().unwrap()).args(words).args(arguments).output().unwrap()
}

#[track_caller]
fn check(output: &Output, code: i32, said: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for text in said {
        assert!(stderr.contains(text), "`{text}` is not in: {stderr}");
    }
}

const WITHOUT_BPF: &[&str] = &["setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon"];

#[test]
fn record_without_the_right_to_use_bpf_says_what_to_grant() {
    let Some(_turn) = take_turn() else { return };
    let output = scratch_dir().join("never.pb.gz");
    let output = output.to_str().unwrap();
    let recorded = run(WITHOUT_BPF, "everflame", &["record", "--duration", "1s", "-o", output]);
    check(&recorded, 77, &["CAP_BPF", "root"]);
}

#[test]
fn agent_without_the_right_to_use_bpf_says_what_to_grant() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let spool = dir.path().to_str().unwrap();
    let agent = run(WITHOUT_BPF, "everflame-agent", &["--metrics", "off", "--spool-dir", spool]);
    check(&agent, 77, &["CAP_BPF", "nothing can be sampled"]);

    let listed = run(WITHOUT_BPF, "everflame-agent", &["capabilities"]);
    assert_eq!(listed.status.code(), Some(77));
    assert!(String::from_utf8_lossy(&listed.stdout).contains("CAP_BPF                  NO"));
}

#[test]
fn kernel_without_btf_is_named_as_the_cause() {
    let Some(_turn) = take_turn() else { return };
    // A kernel that has no BTF looks like this one with its BTF hidden.
    let script = r#"mount -t tmpfs tmpfs /sys/kernel/btf && exec "$0" "$@""#;
    let output = scratch_dir().join("never.pb.gz");
    let output = output.to_str().unwrap();
    let recorded = run(
        &["unshare", "--mount", "sh", "-c", script],
        "everflame",
        &["record", "--duration", "1s", "-o", output],
    );
    check(&recorded, 69, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
}

#[test]
fn pid_namespace_of_its_own_is_refused() {
    let Some(_turn) = take_turn() else { return };
    let output = scratch_dir().join("never.pb.gz");
    let output = output.to_str().unwrap();
    let recorded = run(
        &["unshare", "--pid", "--fork", "--mount-proc"],
        "everflame",
        &["record", "--duration", "1s", "-o", output],
    );
    check(&recorded, 69, &["pid namespace", "hostPID: true"]);
}

#[test]
fn rates_that_the_kernel_does_not_allow_are_refused() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let spool = dir.path().to_str().unwrap();
    let arguments = ["--metrics", "off", "--cpu-rate-hz", "999999999", "--spool-dir", spool];
    let agent = run(&["env"], "everflame-agent", &arguments);
    check(&agent, 64, &["999999999 Hz", "perf_event_max_sample_rate"]);
}

#[test]
fn second_agent_on_a_spool_is_refused() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let spool = dir.path().join("spool");
    let _first = everflame_tests::program::Agent::start("http://127.0.0.1:9", &spool, &[]);
    let second = run(
        &["env"],
        "everflame-agent",
        &["--metrics", "off", "--spool-dir", spool.to_str().unwrap()],
    );
    check(&second, 69, &[spool.to_str().unwrap()]);
}
