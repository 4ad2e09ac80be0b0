//! contention.h in Rust: one lock that `slow_holder` keeps for 20 ms at a time, and four threads
//! that want it, which tell the truth about themselves in the same words.
//!
//! Included by the programs that have such a lock, and compiled with them.

use std::io::Read;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

const MS: u64 = 1_000_000;
const REQUESTS: usize = 4;

#[repr(C)]
struct Timespec {
    seconds: i64,
    ns: i64,
}

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    fn gettid() -> i32;
    fn pipe(ends: *mut i32) -> i32;
    fn read(fd: i32, buffer: *mut u8, size: usize) -> isize;
    fn close(fd: i32) -> i32;
}

const CLOCK_MONOTONIC: i32 = 1;
const CLOCK_THREAD_CPUTIME_ID: i32 = 3;

fn clock_ns(clock: i32) -> u64 {
    let mut time = Timespec { seconds: 0, ns: 0 };
    // SAFETY: the time is this function's own.
    unsafe { clock_gettime(clock, &mut time) };
    time.seconds as u64 * 1_000_000_000 + time.ns as u64
}

/// CLOCK_MONOTONIC.
pub fn monotonic_ns() -> u64 {
    clock_ns(CLOCK_MONOTONIC)
}

fn run_delay_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').nth(1).and_then(|delay| delay.parse().ok()).unwrap_or(0)
}

/// Context switches of this thread: (voluntary, involuntary).
fn switches() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    (field("voluntary_ctxt_switches:"), field("nonvoluntary_ctxt_switches:"))
}

/// Keeps a CPU busy for this long by the clock on the wall.
#[inline(never)]
fn busy_for(ns: u64) {
    let end_ns = monotonic_ns() + ns;
    while monotonic_ns() < end_ns {}
}

#[inline(never)]
fn wait_for_start(gate: i32) {
    let mut byte = 0;
    // SAFETY: one byte, into one byte. The pipe ends when all are to begin.
    unsafe { read(gate, &mut byte, 1) };
}

/// What a thread did with the lock.
#[derive(Default)]
pub struct Locker {
    is_holder: bool,
    hold_sleeps: bool,
    deadline_ns: u64,
    waits: Vec<(u64, u64)>,
    holds: Vec<(u64, u64)>,
    asked_ns: u64,
    got_ns: u64,
}

impl Locker {
    /// To be called before the lock is asked for.
    #[inline(always)]
    pub fn asks(&mut self) {
        self.asked_ns = monotonic_ns();
    }

    /// To be called with the lock held: keeps it, slowly or not. By this argument, too, the two
    /// functions that call it differ: compilers make one of functions that are the same.
    #[inline(always)]
    pub fn keeps(&mut self, slowly: bool) {
        self.got_ns = monotonic_ns();
        match (slowly, self.hold_sleeps) {
            (true, true) => std::thread::sleep(Duration::from_millis(20)),
            (true, false) => busy_for(20 * MS),
            (false, _) => busy_for(MS / 10),
        }
        self.waits.push((self.asked_ns, self.got_ns));
        self.holds.push((self.got_ns, monotonic_ns()));
    }

    /// To be called without the lock: whether there is to be another round, after a pause.
    #[inline(never)]
    pub fn pauses(&mut self) -> bool {
        std::thread::sleep(Duration::from_millis(if self.is_holder { 5 } else { 1 }));
        monotonic_ns() < self.deadline_ns
    }
}

fn sum_ns(intervals: &[(u64, u64)]) -> u64 {
    intervals.iter().map(|(from, to)| to - from).sum()
}

/// Both are sorted, and none of one list overlaps another of it.
fn overlap_ns(waits: &[(u64, u64)], holds: &[(u64, u64)]) -> u64 {
    let mut first = 0;
    let mut sum = 0;
    for &(from, to) in waits {
        while first < holds.len() && holds[first].1 <= from {
            first += 1;
        }
        let meets = holds[first..].iter().take_while(|hold| hold.0 < to);
        sum += meets.map(|hold| hold.1.min(to) - hold.0.max(from)).sum::<u64>();
    }
    sum
}

/// Address and size of the lock.
pub type Place = (usize, usize);

/// Runs one thread of `holder` and four of `request` for as long as the arguments `HOLD SECONDS`
/// say, and prints what happened.
pub fn run(kind: &str, lock: Place, holder: fn(Locker) -> Locker, request: fn(Locker) -> Locker) {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, hold, seconds] = &arguments[..] else {
        eprintln!("usage: {} busy|sleep SECONDS", arguments[0]);
        std::process::exit(64);
    };
    assert!(hold == "busy" || hold == "sleep", "the holder is `busy` or does `sleep`");
    let duration_ns = (seconds.parse::<f64>().expect("a number of seconds") * 1e9) as u64;
    let hold_sleeps = hold == "sleep";

    let mut gate = [0; 2];
    // SAFETY: two descriptors, into two integers.
    assert_eq!(unsafe { pipe(gate.as_mut_ptr()) }, 0, "pipe");
    static TIDS: [OnceLock<i32>; REQUESTS + 1] = [const { OnceLock::new() }; REQUESTS + 1];
    let spawn = |index: usize| -> (String, JoinHandle<(String, Locker)>) {
        let is_holder = index == 0;
        let name = if is_holder { "holder".to_owned() } else { format!("request_{}", index - 1) };
        let gate = gate[0];
        let of_thread = name.clone();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            // SAFETY: it only asks.
            let tid = unsafe { gettid() };
            TIDS[index].set(tid).expect("each thread sets its own");
            wait_for_start(gate);
            let (voluntary, involuntary) = switches();
            let delay_ns = run_delay_ns();
            let cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
            let start_ns = monotonic_ns();
            let deadline_ns = start_ns + duration_ns;
            let locker = Locker { is_holder, hold_sleeps, deadline_ns, ..Locker::default() };
            let locker = if is_holder { holder(locker) } else { request(locker) };
            let end_ns = monotonic_ns();
            let cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns;
            let delay_ns = run_delay_ns() - delay_ns;
            let after = switches();
            let line = format!(
                "thread name={of_thread} tid={tid} wall_ns={} cpu_ns={cpu_ns} \
                 start_ns={start_ns} end_ns={end_ns} run_delay_ns={delay_ns} voluntary={} \
                 involuntary={}",
                end_ns - start_ns,
                after.0 - voluntary,
                after.1 - involuntary
            );
            (line, locker)
        });
        (name, thread.expect("a thread"))
    };
    let threads: Vec<_> = (0..=REQUESTS).map(spawn).collect();
    let tids = TIDS.each_ref().map(|tid| {
        while tid.get().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        tid.get().copied().unwrap_or(0)
    });
    let names: Vec<String> =
        threads.iter().zip(tids).map(|((name, _), tid)| format!("{name}:{tid}")).collect();
    println!("ready pid={} threads={}", std::process::id(), names.join(","));
    let mut byte = [0];
    while std::io::stdin().read(&mut byte).is_ok_and(|size| size == 1) && byte[0] != b'\n' {}
    // SAFETY: nobody else has this end.
    unsafe { close(gate[1]) };

    let mut lockers = Vec::new();
    for (name, thread) in threads {
        let (line, locker) = thread.join().expect("no thread panics");
        println!("{line}");
        lockers.push((name, locker));
    }
    let holds = std::mem::take(&mut lockers[0].1.holds);
    let slow_ns = |locker: &Locker| overlap_ns(&locker.waits, &holds);
    let requests = || lockers[1..].iter().map(|(_, locker)| locker);
    println!(
        "lock kind={kind} address={:#x} size={} wait_ns={} hold_ns={} slow_ns={}",
        lock.0,
        lock.1,
        requests().map(|locker| sum_ns(&locker.waits)).sum::<u64>(),
        sum_ns(&holds),
        requests().map(slow_ns).sum::<u64>()
    );
    for ((name, locker), tid) in lockers.iter().zip(tids) {
        println!(
            "locker thread={name} tid={tid} function={} acquisitions={} wait_ns={} \
             max_wait_ns={} hold_ns={} slow_ns={}",
            if locker.is_holder { "slow_holder" } else { "request_path" },
            locker.waits.len(),
            sum_ns(&locker.waits),
            locker.waits.iter().map(|(from, to)| to - from).max().unwrap_or(0),
            if locker.is_holder { sum_ns(&holds) } else { sum_ns(&locker.holds) },
            if locker.is_holder { 0 } else { slow_ns(locker) }
        );
    }
}
