//! Threads with known waits, left alone and moved about; and a pool that waits for work.

use std::sync::OnceLock;
use std::time::Duration;

use everflame_tests::profile::Sample;
use everflame_tests::waits::{self, Program, Truth};
use tempfile::TempDir;

use super::{
    Cpus, Findings, PERIOD_NS, Recorded, check_time_off_cpu, count, in_span, is_complete,
    is_run_queue, ns, of_thread,
};
use crate::say;
use crate::take_turn;

/// How long the programs go on.
const DURATION: Duration = Duration::from_secs(20);
/// How long a thread stays where it is in the storm, on average.
const STAY: Duration = Duration::from_millis(2);

/// Where each thread of `waits` waits, and what for.
const SITES: [(&str, &str, &str); 5] = [
    ("sleeper", "wait_in_sleep", "sleep"),
    ("reader", "wait_in_pipe", "other"),
    ("direct", "wait_in_direct_read", "disk"),
    ("mutex_a", "wait_in_mutex", "lock"),
    ("mutex_b", "wait_in_mutex", "lock"),
];

/// What programs said and what was recorded of them.
struct Outcome {
    truth: Truth,
    samples: Vec<Sample>,
}

impl Outcome {
    fn of((truth, samples): (Truth, Vec<Sample>)) -> Self {
        Self { truth, samples }
    }
}

/// All of it at the same time: that they compete for the CPUs is as good a test.
struct Outcomes {
    calm: Outcome,
    stormy: Outcome,
    storm: Truth,
    pool: Outcome,
}

impl Outcomes {
    /// Measured by the first who asks. `None` where BPF is not permitted.
    fn get() -> Option<&'static Self> {
        static OUTCOMES: OnceLock<Option<Outcomes>> = OnceLock::new();
        let measured = OUTCOMES.get_or_init(|| take_turn().map(|_turn| Self::measure()));
        measured.as_ref()
    }

    fn measure() -> Self {
        // Not in a temporary directory, which may be memory.
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let waits = |file: &str| Recorded::start(&waits::waits(DURATION, &dir.path().join(file)));
        let (mut calm, mut stormy) = (waits("calm"), waits("stormy"));
        let mut pool = Recorded::start(&waits::idle_pool(DURATION));
        // Longer than they go on: it ends with them.
        let tids = stormy.program.tids();
        let mut storm = Program::start(&mut waits::migrate(&tids, STAY, 2 * DURATION));
        for program in [&mut storm, &mut calm.program, &mut stormy.program, &mut pool.program] {
            program.begin();
        }
        Self {
            calm: Outcome::of(calm.finish()),
            stormy: Outcome::of(stormy.finish()),
            storm: storm.finish(),
            pool: Outcome::of(pool.finish()),
        }
    }
}

fn check_times(outcome: &Outcome) -> Findings {
    let mut findings = Findings::new();
    let threads = outcome.truth.threads();
    assert_eq!(threads.len() + usize::from(outcome.truth.says("direct unsupported")), SITES.len());
    for thread in &threads {
        check_time_off_cpu(&mut findings, thread, &outcome.samples, Cpus::Idle);
    }
    findings
}

#[test]
fn time_off_cpu_is_wall_minus_cpu_time() {
    let Some(outcomes) = Outcomes::get() else { return };
    let mut findings = check_times(&outcomes.calm);
    // Not in the storm: moved in mid-wait, a thread is in a queue for the kernel's statistics.
    for thread in &outcomes.calm.truth.threads() {
        let queued = ns(in_span(&outcomes.calm.samples, thread).filter(is_run_queue));
        // The kernel counts from when the thread is in the queue; it is woken before that.
        let expected = thread.run_delay_ns as f64;
        let early = 2.0 * Cpus::Idle.overcharged_ns(thread);
        let tolerance = 0.05 * expected + 2.0 * PERIOD_NS + early;
        findings.within(&format!("{} in run queue", thread.name), queued, expected, tolerance);
    }
}

#[test]
fn migrations_in_mid_wait_change_nothing() {
    let Some(outcomes) = Outcomes::get() else { return };
    let moves = outcomes.storm.number("migrate", "elsewhere");
    say(&format!("{moves} times to another cpu"));
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(cpus == 1 || moves > 1000, "that was no storm: {moves} moves");
    drop(check_times(&outcomes.stormy));
}

#[test]
fn known_waits_have_their_reasons_and_complete_stacks() {
    let Some(Outcomes { calm, .. }) = Outcomes::get() else { return };
    let mut findings = Findings::new();
    for (thread, function, reason) in SITES {
        if thread == "direct" && calm.truth.says("direct unsupported") {
            say("SKIPPED: no O_DIRECT here");
            continue;
        }
        let truth = calm.truth.thread(thread);
        let own = in_span(&calm.samples, &truth);
        let site = own.clone().filter(|sample| sample.has(function));
        let waits = site.clone().filter(|sample| !is_run_queue(sample));
        let of_reason = waits.clone().filter(|sample| sample.label("reason") == reason);
        let what = format!("{thread} in {function}");
        findings.share(&format!("{what}: {reason}"), ns(of_reason), ns(waits.clone()), 0.99);
        // mutex_a and mutex_b are the same but for what they call it with.
        let through: &[&str] = if function == "wait_in_mutex" { &["share_mutex"] } else { &[] };
        let stack = [&[function], through, &[thread, "party_thread"]].concat();
        let complete = site.clone().filter(|sample| is_complete(sample, &stack));
        findings.share(&format!("{what}: complete"), count(complete), count(site.clone()), 0.999);

        let said = calm.truth.waits();
        let said = said.iter().find(|wait| wait.thread == thread && wait.function == function);
        let said = said.expect("the program says how often it waits");
        if said.ns > 2 * said.count * PERIOD_NS as u64 {
            // Each of these waits is a sample by itself.
            let found = count(waits.clone());
            findings.within(&format!("{what}: waits"), found, said.count as f64, 1.0);
        }
        if thread != "direct" {
            // The calls of the others compute next to nothing. Which of a thread's short waits
            // are samples is chance: a wait of length l is one of a period with probability l / p.
            let (call, found) = (said.ns as f64, ns(site));
            let length = (call / said.count as f64).min(PERIOD_NS);
            let chance = 4.0 * (call * (PERIOD_NS - length)).sqrt();
            let tolerance = 0.03 * call + 2.0 * PERIOD_NS + chance;
            findings.within(&format!("{what}: time"), found, call, tolerance);
        }
    }
}

#[test]
fn waits_for_work_are_idle_but_a_contended_mutex_is_not() {
    let Some(Outcomes { calm, pool, .. }) = Outcomes::get() else { return };
    let is_idle = |sample: &&Sample| sample.label("idle") == "true";
    let mut findings = Findings::new();
    let workers = pool.truth.waits();
    assert_eq!(workers.len(), 4);
    for worker in workers {
        let waits = of_thread(&pool.samples, worker.tid)
            .filter(|sample| sample.has(&worker.function) && !is_run_queue(sample));
        let what = format!("{} idle", worker.thread);
        findings.share(&what, ns(waits.clone().filter(is_idle)), ns(waits.clone()), 0.99);
        let said = worker.ns as f64;
        findings.within(&worker.thread, ns(waits), said, 0.02 * said + 2.0 * PERIOD_NS);
    }
    for thread in calm.truth.threads() {
        let idle: Vec<&Sample> = in_span(&calm.samples, &thread).filter(is_idle).collect();
        findings.note(idle.is_empty(), format!("{} is idle {} times", thread.name, idle.len()));
    }
}
