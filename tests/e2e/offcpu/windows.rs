//! What an agent delivers window by window: time on and off the CPU together, and waits that go
//! on for longer than a window.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use everflame_agent::collect::monotonic_ns;
use everflame_tests::profile::Sample;
use everflame_tests::program::{Agent, Server};
use everflame_tests::waits::{self, Hold, Lock, Program, Truth};
use tempfile::TempDir;

use super::{
    Cpus, Findings, check_time_off_cpu, count, in_span, is_complete, is_run_queue, ns, of_process,
    of_thread, stored,
};
use crate::say;
use crate::take_turn;

const DURATION: Duration = Duration::from_secs(20);
const RATE_HZ: f64 = 97.0;
const WINDOW_NS: f64 = 2e9;
const ARGUMENTS: &[&str] = &["--kinds", "cpu,offcpu", "--window", "2s", "--cpu-rate-hz", "97"];

/// A program that ran while the agent did, and what the collector has of it in the end.
struct Outcome {
    truth: Truth,
    cpu: Vec<Sample>,
    off_cpu: Vec<Sample>,
}

/// One that waits for its start from before the others begin until they have ended.
struct Stuck {
    /// When it was ready, which is just after all its threads began to wait.
    ready_ns: u64,
    /// Sums of one thread's wait, as they were stored while it went on.
    seen_ns: Vec<f64>,
    /// Times since it was ready, and what the windows that began before then have of that wait,
    /// in nanoseconds.
    until_ns: Vec<(f64, f64)>,
    outcome: Outcome,
}

struct Outcomes {
    waits: Outcome,
    contention: Outcome,
    stuck: Stuck,
    /// Waits of the collector, which is a program with epoll loops.
    collector: Vec<Sample>,
    lost: f64,
}

impl Outcomes {
    /// Measured by the first who asks. `None` where BPF is not permitted.
    fn get() -> Option<&'static Self> {
        static OUTCOMES: OnceLock<Option<Outcomes>> = OnceLock::new();
        OUTCOMES.get_or_init(|| take_turn().map(|_turn| Self::measure())).as_ref()
    }

    fn measure() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
        let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), ARGUMENTS);
        let stuck = Program::start(&mut waits::pingpong("pipe", Duration::from_millis(100), false));
        let (ready_ns, ready) = (monotonic_ns(), SystemTime::now());
        let mut waits = Program::start(&mut waits::waits(DURATION, &dir.path().join("direct")));
        let mut contention =
            Program::start(&mut waits::contention(Lock::Mutex, Hold::Busy, DURATION));
        waits.begin();
        contention.begin();
        let seen_ns = watch(&server, &stuck, dir.path());
        let stuck_tid = stuck.tid("ping");
        let pids = [waits.pid(), contention.pid(), stuck.pid()];
        let truths = [waits.finish(), contention.finish(), stuck.finish()];
        let lost = agent.metric("everflame_agent_lost_samples_total");
        assert!(agent.process.terminate().success(), "{}", agent.process.log());

        let stored = |kind, selector: &str| stored(&server, kind, selector, None, dir.path());
        let waited_until = |seconds: u64| {
            let time = ready + Duration::from_secs(seconds);
            let process = of_process(pids[2]);
            let samples = self::stored(&server, "offcpu", &process, Some(time), dir.path());
            (seconds as f64 * 1e9, ns(ping_waits(&samples, stuck_tid)))
        };
        let until_ns = (4..DURATION.as_secs()).step_by(2).map(waited_until).collect();
        let outcome = |truth, pid| Outcome {
            truth,
            cpu: stored("cpu", &of_process(pid)),
            off_cpu: stored("offcpu", &of_process(pid)),
        };
        let [waits, contention, stuck] = truths;
        Self {
            waits: outcome(waits, pids[0]),
            contention: outcome(contention, pids[1]),
            stuck: Stuck { ready_ns, seen_ns, until_ns, outcome: outcome(stuck, pids[2]) },
            collector: stored("offcpu", &of_process(server.process.pid())),
            lost,
        }
    }
}

/// The wait for the start of one that is stuck.
fn ping_waits(samples: &[Sample], tid: u32) -> impl Iterator<Item = &Sample> {
    of_thread(samples, tid).filter(|sample| sample.has("wait_for_start"))
}

/// Looks at what is stored of a wait that goes on, for most of the time that the others take.
fn watch(server: &Server, stuck: &Program, dir: &Path) -> Vec<f64> {
    let until = Instant::now() + DURATION * 3 / 4;
    let mut seen_ns = Vec::new();
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(500));
        let samples = stored(server, "offcpu", &of_process(stuck.pid()), None, dir);
        let sum = ns(ping_waits(&samples, stuck.tid("ping")));
        // Nothing may be taken back, either.
        if sum > 0.0 && seen_ns.last() != Some(&sum) {
            seen_ns.push(sum);
        }
    }
    seen_ns
}

#[test]
fn time_on_and_off_the_cpu_adds_up_to_wall_time() {
    let Some(outcomes) = Outcomes::get() else { return };
    let mut findings = Findings::new();
    findings.note(outcomes.lost == 0.0, format!("{} samples lost", outcomes.lost));
    for outcome in [&outcomes.waits, &outcomes.contention] {
        for thread in outcome.truth.threads() {
            let (wall, cpu) = (thread.wall_ns as f64, thread.cpu_ns as f64);
            let off_cpu = ns(in_span(&outcome.off_cpu, &thread));
            let on_cpu = ns(in_span(&outcome.cpu, &thread));
            // Which of the ticks in its life hit a thread that is on a CPU for a share of it is
            // chance: six standard errors of that, as ticks come at even distances and a thread
            // with a rhythm of its own meets them at the same places for a while. Only for one
            // that computes much is it more than 2 %.
            let ticks = wall / 1e9 * RATE_HZ;
            let share = cpu / wall;
            let chance = 6.0 * (share * (1.0 - share) / ticks).sqrt();
            // Nor are ticks independent of a thread that runs for some microseconds after each
            // interrupt of a disk, which may have to wait for the tick's: seen to be 5 % of wall
            // time too few, beside what chance does.
            let is_driven = thread.voluntary as f64 > 1000.0 * wall / 1e9;
            let error = if is_driven { chance + 0.05 } else { chance.max(0.02) };
            // What the host took of this machine's CPUs is in neither.
            let least = (1.0 - error) * wall - thread.stolen_ns as f64;
            findings.between(&thread.name, on_cpu + off_cpu, wall, least..=(1.0 + error) * wall);
            // This part is measured, not sampled.
            check_time_off_cpu(&mut findings, &thread, &outcome.off_cpu, Cpus::Idle);
        }
    }
}

#[test]
fn wait_that_goes_on_is_in_every_window_and_nothing_twice() {
    let Some(Outcomes { stuck, .. }) = Outcomes::get() else { return };
    let mut findings = Findings::new();
    let seen: Vec<String> = stuck.seen_ns.iter().map(|ns| format!("{:.2}", ns / 1e9)).collect();
    // How soon what an agent sends can be queried is not its own doing alone.
    let is_seen = stuck.seen_ns.len() >= 3 && stuck.seen_ns.is_sorted();
    findings.note(is_seen, format!("seen while it goes on, in seconds: {}", seen.join(", ")));
    for (until, waited) in &stuck.until_ns {
        // A window belongs to the time in which it begins, and may be written late.
        findings.within("windows until then", *waited, *until, 2.0 * WINDOW_NS);
    }
    for thread in stuck.outcome.truth.threads() {
        let waits = of_thread(&stuck.outcome.off_cpu, thread.tid)
            .filter(|sample| sample.has("wait_for_start"));
        let ended = waits.clone().filter(|sample| !is_run_queue(sample));
        let expected = (thread.start_ns - stuck.ready_ns) as f64;
        findings.within(&thread.name, ns(ended.clone()), expected, 0.02 * expected);
        let once = count(ended);
        findings.note(once == 1.0, format!("{} waits {once} times", thread.name));
        let complete =
            waits.clone().filter(|sample| is_complete(sample, &["wait_for_start", "party_thread"]));
        findings.share(&format!("{} complete", thread.name), ns(complete), ns(waits), 0.999);
    }
}

#[test]
fn event_loops_are_idle() {
    let Some(Outcomes { collector, .. }) = Outcomes::get() else { return };
    let mut findings = Findings::new();
    let epoll = collector.iter().filter(|sample| {
        !is_run_queue(sample) && sample.stack.iter().any(|name| name.contains("epoll_wait"))
    });
    say(&format!("{:.3} s in epoll", ns(epoll.clone()) / 1e9));
    let idle = epoll.clone().filter(|sample| sample.label("idle") == "true");
    findings.share("epoll idle", ns(idle), ns(epoll.clone()), 1.0);
    let network = epoll.clone().filter(|sample| sample.label("reason") == "network");
    findings.share("epoll network", ns(network), ns(epoll), 1.0);
}
