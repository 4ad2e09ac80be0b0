//! Locks: who waits for them and who holds them, compared with what the programs say.

use std::time::Duration;

use everflame_tests::program::{Agent, Server, everflame};
use everflame_tests::waits::{self, Hold, Lock, LockTruth, Program};
use serde_json::Value;
use tempfile::TempDir;

use crate::offcpu::Findings;
use crate::take_turn;

const DURATION: Duration = Duration::from_secs(5);

/// The report of `everflame locks` about a program, and what that says of its lock. `None` where
/// BPF is not permitted, or the program says that it cannot do this.
fn report(lock: Lock, hold: Hold) -> Option<(Value, LockTruth)> {
    let _turn = take_turn()?;
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("locks.json");
    let command = waits::contention(lock, hold, DURATION);
    let mut locks = everflame();
    locks.args(["locks", "--duration", "300s", "-o"]).arg(&output);
    locks.arg("--").arg(command.get_program()).args(command.get_args());
    let truth = Program::start(&mut locks).finish();
    if truth.says("futex2 unsupported") {
        return None;
    }
    let report = std::fs::read_to_string(&output).unwrap();
    Some((serde_json::from_str(&report).unwrap(), truth.lock()))
}

fn functions(totals: &Value) -> impl Iterator<Item = &str> {
    totals["stack"].as_array().unwrap().iter().filter_map(Value::as_str)
}

/// Sum of `key` over the entries of one side whose stack has a function of that name in it, and
/// over all.
fn sums(side: &Value, key: &str, function: &str) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    for totals in side.as_array().unwrap() {
        let value = totals[key].as_f64().unwrap();
        sums.1 += value;
        if functions(totals).any(|name| name.contains(function)) {
            sums.0 += value;
        }
    }
    sums
}

/// Functions as they are called in C; Rust and C++ put something around them.
const REQUEST: &str = "request_path";
const HOLDER: &str = "slow_holder";
const CALLER: &str = "holder_outer";

/// What the program calls its lock.
fn variable(lock: Lock) -> &'static str {
    match lock {
        Lock::CxxMutex => "the_mutex",
        Lock::CxxSharedMutex => "the_shared_mutex",
        Lock::RustMutex => "rust_mutex::THE_LOCK",
        _ => "the_lock",
    }
}

/// Whether `symbol` is a variable's name, or its name with an offset in it.
fn is_in(symbol: &str, variable: &str) -> bool {
    let rest = symbol.strip_prefix(variable);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("+0x"))
}

fn check(lock: Lock, hold: Hold) {
    let Some((report, truth)) = report(lock, hold) else { return };
    let mut findings = Findings::new();
    let first = &report["locks"][0];
    // Words side by side are shown by the address of the lower one.
    let address = first["address"].as_str().and_then(|text| text.strip_prefix("0x"));
    let address = address.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let has_address = address.is_some_and(|address| truth.contains(address));
    findings.note(has_address, format!("{lock:?}: {first:.60} is at {:#x}", truth.address));
    let symbol = first["symbol"].as_str().unwrap_or_default();
    let is_named = is_in(symbol, variable(lock));
    findings.note(is_named, format!("{lock:?}: `{symbol}` is {}", variable(lock)));
    check_sides(&mut findings, first, &truth, &format!("{lock:?}, {hold:?}"));
}

fn check_waiters(findings: &mut Findings, first: &Value, truth: &LockTruth, name: &str) {
    let wait_ns = first["wait_ns"].as_f64().unwrap();
    let expected = truth.wait_ns as f64;
    findings.within(&format!("{name}: wait"), wait_ns, expected, 0.03 * expected);
    let (requests, all) = sums(&first["waiters"], "wait_ns", REQUEST);
    findings.share(&format!("{name}: waiters in {REQUEST}"), requests, all, 0.99);
}

fn check_sides(findings: &mut Findings, first: &Value, truth: &LockTruth, name: &str) {
    check_waiters(findings, first, truth, name);
    let (slow, all) = sums(&first["holders"], "hold_ns", HOLDER);
    findings.share(&format!("{name}: charged to {HOLDER}"), slow, all, 0.85);
    let expected = truth.slow_ns as f64;
    findings.within(&format!("{name}: charged to {HOLDER}"), slow, expected, 0.05 * expected);
    let (with_caller, _) = sums(&first["holders"], "hold_ns", CALLER);
    findings.share(&format!("{name}: of that below {CALLER}"), with_caller, slow, 0.99);
}

/// The way through agent and collector, in windows, beside what runs on the host.
#[test]
fn locks_of_a_host_are_in_its_collector() {
    let Some(_turn) = take_turn() else { return };
    let dir = TempDir::new().unwrap();
    let server = Server::start(&dir.path().join("data"), "127.0.0.1:0");
    let arguments = ["--kinds", "cpu,lock", "--window", "2s"];
    let mut agent = Agent::start(&server.url(), &dir.path().join("spool"), &arguments);
    let program = Program::start(&mut waits::contention(Lock::Mutex, Hold::Sleep, DURATION));
    let selector = format!("{{pid=\"{}\"}}", program.pid());
    let truth = program.finish().lock();
    assert!(agent.process.terminate().success(), "{}", agent.process.log());

    let asked = everflame()
        .args(["locks", "--format", "json", "--selector", &selector, "--server", &server.url()])
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let report: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let mut findings = Findings::new();
    let first = &report["locks"][0];
    check_sides(&mut findings, first, &truth, "from the collector");
    let symbol = first["symbol"].as_str().unwrap_or_default();
    findings.note(symbol == "the_lock", format!("from the collector: `{symbol}` is the_lock"));

    let joined = dir.path().join("joined.folded");
    let flame = everflame()
        .args(["flame", "--kind", "lock", "--server", &server.url(), "-o"])
        .arg(&joined)
        .args(["--selector", &selector.replace('}', ",side=\"joined\"}")])
        .output()
        .unwrap();
    assert!(flame.status.success(), "{}", String::from_utf8_lossy(&flame.stderr));
    let joined = std::fs::read_to_string(&joined).unwrap();
    let value = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap();
    // From the root to the leaf; the process has the holder's name, too.
    let is_below = |line: &&str| {
        let (waiter, releaser) = line.split_once("[released by]").unwrap_or_default();
        waiter.contains(REQUEST) && releaser.contains(HOLDER)
    };
    let below: f64 = joined.lines().filter(is_below).map(value).sum();
    let (all, slow) = (joined.lines().map(value).sum(), truth.slow_ns as f64);
    findings.within("from the collector: joined", all, truth.wait_ns as f64, 0.03 * all);
    findings.within("from the collector: joined to slow_holder", below, slow, 0.05 * slow);
}

/// Its mutex is a variable without a value at first, which no file has: in .bss.
#[test]
fn mutex_of_a_program_that_runs_already_has_its_name() {
    let Some(_turn) = take_turn() else { return };
    let mut program = Program::start(&mut waits::contention(Lock::Mutex, Hold::Sleep, DURATION));
    program.begin();
    let asked = everflame()
        .args(["locks", "--format", "json", "--duration", "2s", "--pid"])
        .arg(program.pid().to_string())
        .output()
        .unwrap();
    let truth = program.finish().lock();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let report: Value = serde_json::from_slice(&asked.stdout).unwrap();
    let first = &report["locks"][0];
    assert_eq!(first["symbol"], "the_lock", "{report}");
    assert_eq!(first["address"], format!("{:#x}", truth.address), "{report}");
}

#[test]
fn holder_of_a_mutex_is_charged() {
    check(Lock::Mutex, Hold::Busy);
    check(Lock::Mutex, Hold::Sleep);
}

#[test]
fn holders_of_other_pthread_locks_are_charged() {
    for lock in [Lock::AdaptiveMutex, Lock::PiMutex, Lock::Rwlock] {
        check(lock, Hold::Sleep);
    }
}

#[test]
fn locks_of_newer_system_calls_are_seen() {
    check(Lock::Futex2, Hold::Sleep);
}

#[test]
fn locks_of_other_languages_are_seen() {
    for lock in [Lock::CxxMutex, Lock::CxxSharedMutex, Lock::RustMutex] {
        check(lock, Hold::Sleep);
    }
}

/// What the kernel locks for a program: the directory in which several create files.
#[test]
fn locks_of_the_kernel_have_kind_address_and_holder() {
    let Some(_turn) = take_turn() else { return };
    // In memory, where there is no journal nor a disk to wait for.
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let output = dir.path().join("locks.json");
    let processes = 4;
    let command = waits::create_files(dir.path(), processes, DURATION);
    let mut locks = everflame();
    locks.args(["locks", "--duration", "300s", "-o"]).arg(&output);
    locks.arg("--").arg(command.get_program()).args(command.get_args());
    let threads = Program::start(&mut locks).finish().threads();
    let report: Value = serde_json::from_slice(&std::fs::read(&output).unwrap()).unwrap();

    let mut findings = Findings::new();
    let first = &report["locks"][0];
    findings.note(first["kind"] == "rwsem", format!("kind: {}", first["kind"]));
    let address = first["address"].as_str().unwrap_or_default();
    findings.note(address.starts_with("0xffff"), format!("address: {address}"));
    // They wait for little else, which is at locks too.
    let waiting = threads.iter().map(|it| (it.wall_ns - it.cpu_ns - it.run_delay_ns) as f64);
    let waiting: f64 = waiting.sum();
    let wait_ns = first["wait_ns"].as_f64().unwrap();
    // Sums are right to within a period of each thread; what the host takes from the machine
    // is neither a thread's CPU time nor a wait of it.
    let stolen_ns = threads.iter().map(|it| it.stolen_ns).max().unwrap_or_default() as f64;
    // Three percent are missing on a machine of which nothing is taken, more where a third of it is.
    let error_ns = 0.08 * waiting + 10e6 * processes as f64;
    let others = report["locks"].as_array().unwrap().iter().skip(1);
    let others_ns: f64 = others.filter_map(|it| it["wait_ns"].as_f64()).sum();
    println!("directory: {stolen_ns} ns stolen, {others_ns} ns at other locks");
    let range = waiting - stolen_ns - error_ns..=waiting + error_ns;
    let all_ns = wait_ns + others_ns;
    let found =
        format!("directory: waited {wait_ns} ns, at all locks {all_ns}, expected {range:?}");
    findings.note(range.contains(&all_ns), found);
    for (side, key) in [("waiters", "wait_ns"), ("holders", "hold_ns")] {
        let (own, all) = sums(&first[side], key, "create_and_remove");
        let (listing, _) = sums(&first[side], key, "list");
        findings.share(&format!("directory: {side} that use it"), own + listing, all, 0.99);
        findings.share(&format!("directory: {side} that list it"), listing, all, 0.05);
        findings.share(&format!("directory: {side} of all"), all, waiting - stolen_ns, 0.85);
    }
    let leaves =
        first["holders"].as_array().unwrap().iter().filter_map(|it| it["stack"][0].as_str());
    let strange: Vec<_> =
        leaves.filter(|leaf| leaf.contains("bpf") || leaf.contains('[')).collect();
    findings.note(strange.is_empty(), format!("leaves of holders: {strange:?}"));
}

/// Their waiters sleep on words of their own.
#[test]
fn locks_that_park_threads_are_known_by_the_place_that_wants_them() {
    let Some((report, truth)) = report(Lock::ParkingLot, Hold::Sleep) else { return };
    let mut findings = Findings::new();
    let first = &report["locks"][0];
    let symbol = first["symbol"].as_str().unwrap_or_default();
    findings.note(symbol.contains(REQUEST), format!("parking_lot: wanted by {symbol}"));
    check_waiters(&mut findings, first, &truth, "parking_lot");
    let (slow, all) = sums(&first["holders"], "hold_ns", HOLDER);
    findings.share("parking_lot: charged to slow_holder", slow, all, 0.1);
}

#[test]
fn monitors_of_java_are_one_lock() {
    let Some((report, truth)) = report(Lock::Synchronized, Hold::Sleep) else { return };
    let mut findings = Findings::new();
    let first = &report["locks"][0];
    findings.note(first["address"].is_null(), format!("synchronized: {}", first["symbol"]));
    let wait_ns = first["wait_ns"].as_f64().unwrap();
    // The threads' own clocks run on until generated code has the lock.
    findings.share("synchronized: wait", wait_ns, truth.wait_ns as f64, 0.95);
    let (monitors, all) = sums(&first["waiters"], "wait_ns", "ObjectMonitor");
    findings.share("synchronized: in ObjectMonitor", monitors, all, 0.99);
}
