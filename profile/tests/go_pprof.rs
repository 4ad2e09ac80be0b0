//! `go tool pprof`, the tool that everyone has, reads what this crate writes, without a
//! word on stderr. Without Go this is skipped, except in CI.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::process::{Command, Output};

use everflame_profile::{
    FunctionInfo, LabelValue, MappingInfo, Merger, ProfileBuilder, encode_gz, pprof,
};

/// Whether Go is there; says so when it is not.
fn has_go() -> bool {
    let found = Command::new("go").arg("version").output().is_ok_and(|out| out.status.success());
    if !found {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI needs `go` for this");
        println!("skipped: `go` is not installed, so `go tool pprof` cannot be asked");
    }
    found
}

fn go_pprof(profile: &pprof::Profile, arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("profile.pb.gz");
    std::fs::write(&path, encode_gz(profile)).unwrap();
    Command::new("go")
        .args(["tool", "pprof"])
        .args(arguments)
        .arg(&path)
        .env("HOME", dir.path())
        .env("PPROF_TMPDIR", dir.path())
        .output()
        .unwrap()
}

/// As the agent writes it: addresses are offsets in files, one mapping is the kernel, and
/// one file has no symbols and is not on this machine.
fn profile() -> pprof::Profile {
    let mut builder = ProfileBuilder::new(&[("samples", "count"), ("cpu", "nanoseconds")], "cpu");
    builder.set_period("cpu", "nanoseconds", 10_000_000);
    builder.set_time(1_700_000_000_000_000_000, 10_000_000_000);
    let mapping = |filename, start: u64| MappingInfo {
        memory_start: start,
        memory_limit: start + 0x9000,
        file_offset: start,
        filename,
        build_id: "0123abcd",
    };
    let program = builder.mapping(mapping("/srv/api", 0x1000));
    let kernel = builder.mapping(MappingInfo {
        memory_start: 0xffff_ffff_8000_0000,
        memory_limit: u64::MAX,
        filename: "[kernel.kallsyms]",
        ..MappingInfo::default()
    });
    let mut function = |name, line| {
        let filename = "/src/api/main.c";
        builder.function(FunctionInfo { name, system_name: name, filename, start_line: line })
    };
    let (main, hot, cold) = (function("main", 1), function("hot", 10), function("cold", 20));
    let syscall =
        builder.function(FunctionInfo { name: "do_syscall_64", ..FunctionInfo::default() });
    let in_main = builder.location(Some(program), 0x1100, &[(main, 3)]);
    let in_hot = builder.location(Some(program), 0x1200, &[(hot, 12)]);
    let in_cold = builder.location(Some(program), 0x1300, &[(cold, 21), (hot, 14)]);
    let in_kernel = builder.location(Some(kernel), 0xffff_ffff_8010_0000, &[(syscall, 0)]);
    let nameless = builder.location(Some(program), 0x1400, &[]);
    let labels = [("comm", LabelValue::Str("api")), ("pid", LabelValue::Num(7, ""))];
    builder.sample(&[in_hot, in_main], &[75, 750_000_000], &labels);
    builder.sample(&[in_cold, in_main], &[20, 200_000_000], &labels);
    builder.sample(&[in_kernel, nameless, in_main], &[5, 50_000_000], &[]);
    builder.finish()
}

fn check(profile: &pprof::Profile, arguments: &[&str], expected: &[&str]) {
    let output = go_pprof(profile, arguments);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let spaced = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in expected {
        assert!(spaced.contains(text), "no `{text}` in:\n{stdout}");
    }
}

#[test]
fn go_tool_pprof_reads_a_profile_without_a_warning() {
    if !has_go() {
        return;
    }
    check(
        &profile(),
        &["-top"],
        &[
            "Type: cpu",
            "Duration: 10s, Total samples = 1000ms (10.00%)",
            "750ms 75.00% 75.00% 950ms 95.00% hot",
            "200ms 20.00%",
            "cold",
            "50ms 5.00%",
            "do_syscall_64",
        ],
    );
    check(&profile(), &["-top", "-lines"], &["hot /src/api/main.c:12", "cold /src/api/main.c:21"]);
    check(&profile(), &["-tags"], &["comm: Total", "api"]);
}

#[test]
fn go_tool_pprof_reads_a_merged_profile_without_a_warning() {
    if !has_go() {
        return;
    }
    let mut merger = Merger::new();
    merger.add(&profile()).unwrap();
    merger.add_with_labels(&profile(), &[("pid".to_owned(), "8".to_owned())]).unwrap();
    check(
        &merger.finish(),
        &["-top"],
        &[
            "Duration: 20s, Total samples = 2000ms (10.00%)",
            "1500ms 75.00% 75.00% 1900ms 95.00% hot",
        ],
    );
}

#[test]
fn go_tool_pprof_reads_an_empty_profile() {
    if !has_go() {
        return;
    }
    let mut empty = profile();
    empty.sample.clear();
    let output = go_pprof(&empty, &["-top"]);
    assert!(output.status.success(), "{output:?}");
}
