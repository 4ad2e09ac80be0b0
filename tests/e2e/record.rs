//! `everflame record`: profiles here and now.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// CPU time of a process over time, written down while something else goes on.
struct CpuTimeline {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(i64, f64)>>,
}

impl CpuTimeline {
    fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut points = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                points.push((i64::try_from(now.as_nanos()).unwrap(), cpu_seconds(pid)));
                std::thread::sleep(Duration::from_millis(10));
            }
            points
        });
        Self { stop, thread }
    }

    /// CPU seconds between two moments, in nanoseconds since the Unix epoch.
    fn between(self, start_unix_ns: i64, end_unix_ns: i64) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        let points = self.thread.join().unwrap();
        let at = |unix_ns: i64| {
            let next = points.partition_point(|(time, _)| *time < unix_ns);
            let ((t0, c0), (t1, c1)) = (points[next - 1], points[next]);
            c0 + (c1 - c0) * (unix_ns - t0) as f64 / (t1 - t0) as f64
        };
        at(end_unix_ns) - at(start_unix_ns)
    }
}

/// What `go tool pprof` makes of a profile. Fails if it warns.
fn go_pprof(arguments: &[&str], path: &Path) -> String {
    let output = Command::new("go")
        .args(["tool", "pprof"])
        .args(arguments)
        .arg(path)
        .env("PPROF_TMPDIR", path.parent().unwrap())
        .output()
        .unwrap_or_else(|error| panic!("go (`cargo xtask setup --tests` installs it): {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "", "go tool pprof has something to say");
    String::from_utf8(output.stdout).unwrap()
}

/// The flat value in nanoseconds of a function, from `-top -unit=ns`.
fn flat_ns(top: &str, function: &str) -> f64 {
    flat_ns_where(top, |words| words[0] == function)
}

/// The sum of flat values over rows whose name (split at spaces) is wanted.
fn flat_ns_where(top: &str, wanted: impl Fn(&[&str]) -> bool) -> f64 {
    top.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = words.get(5..).filter(|name| !name.is_empty())?;
            let flat = words[0].strip_suffix("ns").unwrap_or(words[0]).parse::<f64>().ok()?;
            wanted(name).then_some(flat)
        })
        .sum()
}

#[test]
fn record_shows_the_shares_and_the_cpu_time_of_a_known_program() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("f.pb.gz");
    let burn =
        Running::start(Command::new(workload("burn")).args(["60", "2"]).stdout(Stdio::null()));

    let timeline = CpuTimeline::start(burn.pid());
    record(&["--duration", "20s", "--pid", &burn.pid().to_string()], &output);

    let (profile, samples) = profile::read(&output);
    let samples_total = total(&samples);
    let expected_seconds =
        timeline.between(profile.time_nanos, profile.time_nanos + profile.duration_nanos);
    let sampled_seconds = samples_total as f64 * profile.period as f64 / 1e9;
    let ratio = sampled_seconds / expected_seconds;
    // With the CPUs to itself the process is hit by every tick, and 3 % is the bar. When
    // others run as well, which ticks hit it is chance: four standard errors of that share.
    let cpus = std::thread::available_parallelism().unwrap().get().min(2) as f64;
    let ticks = cpus * profile.duration_nanos as f64 / profile.period as f64;
    let busy = (expected_seconds * 1e9 / (cpus * profile.duration_nanos as f64)).min(1.0);
    let chance = 4.0 * (ticks * busy * (1.0 - busy)).sqrt() / (ticks * busy);
    println!(
        "samples x period: {sampled_seconds:.3} s, utime + stime: {expected_seconds:.3} s, \
         ratio {ratio:.4}, cpus {busy:.3} busy with it"
    );
    assert!((ratio - 1.0).abs() < chance.max(0.03), "{ratio}, {busy} of the cpus");

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

    // Each line of source that has time lies within its function.
    let lines =
        go_pprof(&["-top", "-unit=ns", "-lines", "-nodecount=1000", "-nodefraction=0"], &output);
    for (function, expected) in [("hot_path", hot), ("cold_path", cold)] {
        let with_lines: f64 = function_lines("burn", function)
            .map(|line| {
                let place = format!("burn.c:{line}");
                flat_ns_where(&lines, |words| {
                    words[0] == function && words.get(1).is_some_and(|file| file.ends_with(&place))
                })
            })
            .sum();
        assert!(with_lines > 0.99 * expected, "{function}: {with_lines} of {expected}\n{lines}");
    }
}

/// The lines of a workload's source that a function takes.
fn function_lines(workload: &str, function: &str) -> RangeInclusive<usize> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("workloads/{workload}.c"));
    let source = std::fs::read_to_string(path).unwrap();
    let number_of = |wanted: &dyn Fn(&str) -> bool, from: usize| {
        let at = source.lines().enumerate().skip(from).find(|(_, line)| wanted(line));
        at.map(|(index, _)| index).unwrap()
    };
    let first = number_of(&|line| line.contains(&format!("uint64_t {function}(")), 0);
    let last = number_of(&|line| line == "}", first);
    first + 1..=last + 1
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
