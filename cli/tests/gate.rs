//! `everflame gate` on files, as a pipeline runs it.
#![expect(clippy::unwrap_used, reason = "a test")]

mod everflame;
mod golden;

use std::path::Path;

use everflame_profile::{FunctionInfo, LabelValue, ProfileBuilder, encode_gz};

use crate::everflame::everflame;
use crate::golden::golden;

const RUNS: [i64; 6] = [0, 3, -2, 4, -3, 1];

/// A run of ten seconds: milliseconds of CPU by function below `main`. Runs differ a little.
fn write(path: &Path, run: usize, functions: &[(&str, i64)], host: Option<&str>) {
    let mut builder = ProfileBuilder::new(&[("samples", "count"), ("cpu", "nanoseconds")], "cpu");
    builder.set_period("cpu", "nanoseconds", 10_000_000);
    builder.set_time(1_700_000_000_000_000_000, 10_000_000_000);
    let mut function = |name| builder.function(FunctionInfo { name, ..FunctionInfo::default() });
    let main = function("main");
    let ids: Vec<_> = functions.iter().map(|(name, _)| function(name)).collect();
    let in_main = builder.location(None, 1, &[(main, 1)]);
    for (at, (id, (_, ms))) in ids.into_iter().zip(functions).enumerate() {
        let differs = RUNS[(run + at) % RUNS.len()];
        let ms = ms * (100 + differs) / 100;
        let leaf = builder.location(None, 2 + at as u64, &[(id, 1)]);
        let labels: Vec<_> = host.map(|host| ("host", LabelValue::Str(host))).into_iter().collect();
        builder.sample(&[leaf, in_main], &[ms / 10, ms * 1_000_000], &labels);
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, encode_gz(&builder.finish())).unwrap();
}

/// Six runs of a base, and of a change whose `render` takes so much of what it did; `base/N.pb.gz`, `pr/N.pb.gz`.
fn runs(render_percent: i64, runs: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for run in 0..runs {
        let base = [("parse", 3_000), ("render", 4_000), ("send|`x`", 2_000)];
        write(&dir.path().join(format!("base/{run}.pb.gz")), run, &base, None);
        let change = [("parse", 3_000), ("render", 40 * render_percent), ("send|`x`", 2_000)];
        write(&dir.path().join(format!("pr/{run}.pb.gz")), run + 1, &change, None);
    }
    dir
}

const GATE: &str = "gate --from base/*.pb.gz --to pr/*.pb.gz";

#[test]
fn slower_build_is_stopped_and_named() {
    let dir = runs(130, 6);
    let outcome = everflame(dir.path(), &format!("{GATE} --fail-on cpu:+10%"));
    assert_eq!(outcome.code, Some(1), "{}{}", outcome.stdout, outcome.stderr);
    golden("gate.txt", &outcome.stdout);
    assert_eq!(outcome.stderr, "everflame: exceeded: cpu:+10%\n");

    let limits = "--fail-on cpu/render/:+10% --fail-on cpu/parse/:+10% --fail-on cpu.total:+50%";
    let outcome = everflame(dir.path(), &format!("{GATE} {limits} -o gate.md"));
    assert_eq!(outcome.code, Some(1));
    golden("gate.md", &std::fs::read_to_string(dir.path().join("gate.md")).unwrap());
    let outcome = everflame(dir.path(), &format!("{GATE} {limits} -o gate.xml"));
    assert_eq!(outcome.code, Some(1));
    golden("gate.xml", &std::fs::read_to_string(dir.path().join("gate.xml")).unwrap());
    let outcome = everflame(dir.path(), &format!("{GATE} {limits} --format json"));
    let gate: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(gate["result"], "failed");
    assert_eq!(gate["limits"][0]["rule"], "cpu/render/:+10%");
    assert_eq!(gate["limits"][0]["exceeded"][0]["function"], "render");
    assert_eq!(gate["limits"][1]["result"], "passed");
}

#[test]
fn equal_builds_pass() {
    let dir = runs(100, 6);
    let outcome =
        everflame(dir.path(), &format!("{GATE} --fail-on cpu:+2% --fail-on cpu.total:+2%"));
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("cpu.total:+2%: passed"), "{}", outcome.stdout);
}

#[test]
fn too_few_runs_end_as_asked() {
    let dir = runs(200, 3);
    let run =
        |arguments: &str| everflame(dir.path(), &format!("{GATE} --fail-on cpu:+2% {arguments}"));
    let outcome = run("");
    assert_eq!(outcome.code, Some(2), "{}", outcome.stdout);
    assert!(
        outcome.stdout.contains("5 hosts or instances are needed on each side"),
        "{}",
        outcome.stdout
    );
    assert_eq!(run("--not-enough-data pass").code, Some(0));
    assert_eq!(run("--not-enough-data fail").code, Some(1));
}

/// Files of one host are its instances.
#[test]
fn files_of_a_host_are_no_hosts() {
    let dir = tempfile::tempdir().unwrap();
    for run in 0..6 {
        for side in ["base", "pr"] {
            let functions = [("parse", 3_000), ("render", 4_000)];
            write(&dir.path().join(format!("{side}/{run}.pb.gz")), run, &functions, Some("ci-1"));
        }
    }
    let outcome = everflame(dir.path(), &format!("{GATE} --fail-on cpu:+2%"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("instances of 1 host were compared"), "{}", outcome.stdout);
}

#[test]
fn what_is_wrong_is_said() {
    let dir = runs(100, 1);
    for (arguments, code, message) in [
        ("gate --from base/*.pb.gz --to pr/*.pb.gz", 64, "--fail-on"),
        ("gate --fail-on cpu:+2%", 64, "say what to compare"),
        (
            "gate --from base/* --to nothing/* --fail-on cpu:+2%",
            2,
            "no file matches --to `nothing/*`",
        ),
        ("gate --from base/* --to pr/* --fail-on cpu:2", 64, "`cpu:2` is no limit"),
        ("gate --from base/* --to pr/* --fail-on heap:+2%", 64, "unknown profile kind `heap`"),
        (
            "gate --from base/* --to pr/* --fail-on lock:+2%",
            2,
            "no file of `base/*` has values of kind lock",
        ),
        ("gate --service a --from v1 --fail-on cpu:+2%", 64, "give two versions"),
        ("diff --service a --from-range -2h..-1h --to-range -1h..-2h", 64, "ends before it begins"),
        ("diff --service a --last-deploy --from v1", 64, "--last-deploy"),
        ("diff --service a before.pb.gz after.pb.gz", 64, "cannot be used with"),
    ] {
        let outcome = everflame(dir.path(), arguments);
        assert_eq!(outcome.code, Some(code), "{arguments}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(message), "{arguments}: {}", outcome.stderr);
    }
}
