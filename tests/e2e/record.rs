//! `everflame record`: profiles here and now.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use everflame_tests::profile::{self, Sample, total};
use everflame_tests::program::{Running, everflame};
use everflame_tests::workload::workload;
use tempfile::TempDir;

use crate::take_turn;

const RATE_HZ: i64 = 97;

fn record(arguments: &[&str], output: &Path) -> Output {
    let recorded = everflame()
        .args(["record", "--rate-hz", &RATE_HZ.to_string(), "-o"])
        .arg(output)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    recorded
}

/// utime + stime of a process in seconds, from /proc/PID/stat (fields 14 and 15).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// What `go tool pprof` makes of a profile. Fails if it warns.
fn go_pprof(arguments: &[&str], path: &Path) -> String {
    let output = Command::new("go")
        .args(["tool", "pprof"])
        .args(arguments)
        .arg(path)
        .env("PPROF_TMPDIR", path.parent().unwrap())
        .output()
        .expect("go; `cargo xtask setup --tests` installs it");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "", "go tool pprof has something to say");
    String::from_utf8(output.stdout).unwrap()
}

/// flat values in nanoseconds by name, from `-top -unit=ns`.
fn flat_ns(top: &str, name: &str) -> f64 {
    top.lines()
        .filter(|line| line.split_whitespace().skip(5).any(|word| word == name))
        .filter_map(|line| line.split_whitespace().next()?.strip_suffix("ns")?.parse::<f64>().ok())
        .sum()
}

#[test]
fn record_shows_the_shares_and_the_cpu_time_of_a_known_program() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("f.pb.gz");
    let burn =
        Running::start(Command::new(workload("burn")).args(["60", "2"]).stdout(Stdio::null()));

    // The profiler must see exactly the span over which CPU time is taken, so the span is
    // the recording's own: from the profile's time and duration.
    let before = (std::time::Instant::now(), cpu_seconds(burn.pid()));
    record(&["--duration", "20s", "--pid", &burn.pid().to_string()], &output);
    let after = (std::time::Instant::now(), cpu_seconds(burn.pid()));

    let (profile, samples) = profile::read(&output);
    let samples_total = total(&samples);
    let cpu_per_wall = (after.1 - before.1) / (after.0 - before.0).as_secs_f64();
    let expected_seconds = cpu_per_wall * profile.duration_nanos as f64 / 1e9;
    let sampled_seconds = samples_total as f64 * profile.period as f64 / 1e9;
    let ratio = sampled_seconds / expected_seconds;
    println!(
        "samples x period: {sampled_seconds:.3} s, utime + stime: {expected_seconds:.3} s, ratio {ratio:.4}"
    );
    assert!((ratio - 1.0).abs() < 0.03, "{ratio}");

    let top = go_pprof(&["-top", "-unit=ns", "-nodecount=1000", "-nodefraction=0"], &output);
    let (hot, cold) = (flat_ns(&top, "hot_path"), flat_ns(&top, "cold_path"));
    let share = hot / (hot + cold);
    let standard_error = (0.75 * 0.25 / samples_total as f64).sqrt();
    println!(
        "hot_path {share:.4} of 0.75, {:.2} standard errors off",
        (share - 0.75) / standard_error
    );
    assert!((share - 0.75).abs() < 4.0 * standard_error, "{share}\n{top}");
    assert!((hot + cold) / (samples_total * profile.period) as f64 > 0.98, "{top}");

    let lines = go_pprof(&["-top", "-lines", "-nodecount=1000", "-nodefraction=0"], &output);
    let source =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/burn.c"))
            .unwrap();
    // The multiplication is the only line of the loop that takes time.
    let expected: Vec<String> = source
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains("x = x * 636413"))
        .map(|(index, _)| format!("burn.c:{}", index + 1))
        .collect();
    assert_eq!(expected.len(), 2);
    for line in &expected {
        assert!(lines.contains(line.as_str()), "{line} is missing in\n{lines}");
    }
}

#[test]
fn record_names_processes_that_live_for_fifty_milliseconds() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("brief.pb.gz");
    let brief = workload("brief");
    let script = format!("for i in $(seq 200); do {}; done", brief.display());
    record(&["--duration", "120s", "--", "sh", "-c", &script], &output);

    let (profile, samples) = profile::read(&output);
    // The shell and `seq` are not what is looked at. A child of the shell is still the shell
    // until it becomes `brief`.
    let others = ["sh", "dash", "bash", "seq"];
    let of_brief: Vec<&Sample> =
        samples.iter().filter(|sample| !others.contains(&sample.label("comm"))).collect();
    let named = of_brief.iter().filter(|sample| {
        // Its own function, or what starts and ends every program: the kernel, the loader
        // and libc, all of them with names.
        sample.label("comm") == "brief"
            && (sample.has("brief_work") || sample.stack.iter().all(|name| !name.is_empty()))
    });
    let (named, of_brief_total) = (total(named.copied()), total(of_brief.iter().copied()));
    let working = total(of_brief.iter().filter(|sample| sample.has("brief_work")).copied());
    let expected = 200.0 * 0.05 * 1e9 / profile.period as f64;
    let share = named as f64 / of_brief_total as f64;
    println!(
        "{named} of {of_brief_total} samples named ({share:.4}), {working} in brief_work, {expected:.0} expected"
    );
    assert!(share >= 0.95, "{share}");
    // And they are all there: 200 times 50 ms of CPU time, nearly all of it in brief_work.
    assert!(named as f64 >= 0.95 * expected, "{named} of {expected}");
    assert!(working as f64 >= 0.90 * expected, "{working} of {expected}");
}

#[test]
fn record_of_a_command_ends_with_it_and_writes_each_format() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let burn = workload("burn");
    let command = ["--duration", "60s", "--", burn.to_str().unwrap(), "2", "1"];
    let file = |name: &str| -> PathBuf { dir.path().join(name) };

    record(&command, &file("burn.pb.gz"));
    let (_, samples) = profile::read(&file("burn.pb.gz"));
    assert!(samples.iter().any(|sample| sample.has("hot_path")));
    assert!(samples.iter().all(|sample| sample.label("comm") != "swapper"));

    record(&command, &file("burn.folded"));
    let folded = std::fs::read_to_string(file("burn.folded")).unwrap();
    let hot = folded.lines().find(|line| line.contains("hot_path")).unwrap();
    assert!(hot.contains("one_round;hot_path "), "{hot}");

    record(&command, &file("burn.svg"));
    let svg = std::fs::read_to_string(file("burn.svg")).unwrap();
    assert!(svg.contains("<svg") && svg.contains("hot_path"), "not a flame graph");
}

#[test]
fn record_of_one_process_holds_nothing_of_others() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("one.pb.gz");
    let burn =
        || Running::start(Command::new(workload("burn")).args(["60", "1"]).stdout(Stdio::null()));
    let (one, _other) = (burn(), burn());
    record(&["--duration", "2s", "--pid", &one.pid().to_string()], &output);
    let (_, samples) = profile::read(&output);
    assert!(total(&samples) > 50);
    for sample in &samples {
        assert_eq!(sample.label("pid"), one.pid().to_string());
        assert_eq!(sample.label("comm"), "burn");
        assert_ne!(sample.label("tid"), "", "threads are told apart");
    }
}
