//! Programs with known waits: starting them, and what they say about themselves.
//!
//! They follow `tests/workloads/waits.h`: a program is ready once all of its threads exist, begins
//! when it is told to, and prints the truth at its end. What they wait for before that, they wait
//! for in a function called `wait_for_start`.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::workload::{java_workload, once, run, source, workload};

/// A lock that `slow_holder`, called by `holder_outer`, keeps for 20 ms at a time while four
/// threads want it in `request_path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// `pthread_mutex_t`, of the default type.
    Mutex,
    /// One that spins before it waits.
    AdaptiveMutex,
    /// One with priority inheritance, which waits in `FUTEX_LOCK_PI`.
    PiMutex,
    /// `pthread_rwlock_t`: half of the threads read, the others and the holder write.
    Rwlock,
    /// `sem_t`
    Semaphore,
    /// A word that is waited on by the newer system call `futex_wait`. Where the kernel has none
    /// the program says `futex2 unsupported`.
    Futex2,
    /// `std::mutex`
    CxxMutex,
    /// `std::shared_mutex`: half of the threads read.
    CxxSharedMutex,
    /// Rust's `std::sync::Mutex`.
    RustMutex,
    /// `parking_lot::Mutex`, whose waiters wait on words of their own.
    ParkingLot,
    /// Java's `synchronized`, with functions named in Java's way (`slowHolder`). No address.
    Synchronized,
}

/// What the slow holder does with the lock held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Computes.
    Busy,
    /// Sleeps.
    Sleep,
}

/// Five threads with known waits, one of which reads `file` (created if need be) past the page
/// cache.
pub fn waits(duration: Duration, file: &Path) -> Command {
    let mut command = Command::new(workload("waits"));
    command.arg(seconds(duration)).arg(file);
    command
}

/// The same with two threads more: one computes all the time, one half of it.
pub fn busy_waits(duration: Duration, file: &Path) -> Command {
    let mut command = waits(duration, file);
    command.arg("busy");
    command
}

/// A lock with a slow holder.
pub fn contention(lock: Lock, hold: Hold, duration: Duration) -> Command {
    let mut command = match lock {
        Lock::Mutex => slow_holder("mutex"),
        Lock::AdaptiveMutex => slow_holder("adaptive_mutex"),
        Lock::PiMutex => slow_holder("pi_mutex"),
        Lock::Rwlock => slow_holder("rwlock"),
        Lock::Semaphore => slow_holder("sem"),
        Lock::Futex2 => slow_holder("futex2"),
        Lock::CxxMutex => cxx_mutex("mutex"),
        Lock::CxxSharedMutex => cxx_mutex("shared_mutex"),
        Lock::RustMutex => Command::new(rust_mutex()),
        Lock::ParkingLot => Command::new(parking_lot_mutex()),
        Lock::Synchronized => {
            let mut java = Command::new("java");
            java.arg("-cp").arg(java_workload("Sync")).arg("Sync");
            java
        }
    };
    let hold = if hold == Hold::Busy { "busy" } else { "sleep" };
    command.arg(hold).arg(seconds(duration));
    command
}

/// Four workers that wait for work on a condition variable, in `wait_for_work`, nearly always.
pub fn idle_pool(duration: Duration) -> Command {
    let mut command = slow_holder("condvar");
    command.arg("sleep").arg(seconds(duration));
    command
}

/// Processes that create and remove files in the same directory.
pub fn create_files(dir: &Path, processes: usize, duration: Duration) -> Command {
    let mut command = Command::new(workload("create_files"));
    command.arg(dir).arg(processes.to_string()).arg(seconds(duration));
    command
}

/// Threads that wait twice and are gone, spread over some time.
pub fn churn_threads(threads: usize, duration: Duration) -> Command {
    let mut command = Command::new(workload("churn_threads"));
    command.arg(threads.to_string()).arg(seconds(duration));
    command
}

/// Two threads that pass a turn to each other by `pipe` or `futex`, as fast as they can; on
/// one CPU or on all.
pub fn pingpong(how: &str, duration: Duration, on_one_cpu: bool) -> Command {
    let mut command = Command::new(workload("pingpong"));
    command.args([how, &seconds(duration)]).args(on_one_cpu.then_some("one-cpu"));
    command
}

/// A storm that moves threads from CPU to CPU, each once in `mean` on average.
pub fn migrate(tids: &[u32], mean: Duration, duration: Duration) -> Command {
    let mut command = Command::new(workload("migrate"));
    command.args([seconds(duration), mean.as_micros().to_string()]);
    command.args(tids.iter().map(u32::to_string));
    command
}

/// One of these programs, killed when it goes out of scope.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    printed: String,
    stolen_before_ns: u64,
    /// Its named threads (or processes, if it is made of those): (name, tid).
    pub threads: Vec<(String, u32)>,
}

impl Program {
    /// Starts one, and returns when it is ready to begin, or has ended instead.
    pub fn start(command: &mut Command) -> Self {
        let stolen_before_ns = stolen_ns();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (printed, threads) = (String::new(), Vec::new());
        let mut program = Self { child, stdin, stdout, printed, stolen_before_ns, threads };
        let mut start = 0;
        while program.stdout.read_line(&mut program.printed).expect("lines of text") > 0 {
            let line = Line::parse(&program.printed[start..]);
            if line.word == "ready" {
                let names = line.text("threads").split(',').filter_map(|name| name.split_once(':'));
                program.threads = names
                    .map(|(name, tid)| (name.to_owned(), tid.parse().expect("a thread id")))
                    .collect();
                break;
            }
            start = program.printed.len();
        }
        program
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The ids of all its named threads.
    pub fn tids(&self) -> Vec<u32> {
        self.threads.iter().map(|(_, tid)| *tid).collect()
    }

    /// The id of a thread.
    pub fn tid(&self, name: &str) -> u32 {
        let thread = self.threads.iter().find(|thread| thread.0 == name);
        thread.unwrap_or_else(|| panic!("no thread {name} among {:?}", self.threads)).1
    }

    /// A number of what it has said until it was ready, as [`Truth::number`] has it.
    pub fn number(&self, word: &str, key: &str) -> u64 {
        Truth { said: self.printed.clone(), stolen_ns: 0 }.number(word, key)
    }

    /// Lets it begin: the end of stdin does.
    pub fn begin(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end, after letting it begin if that has not been done; what it says then.
    pub fn finish(mut self) -> Truth {
        self.begin();
        self.wait()
    }

    /// Waits for its end, which somebody else brings about; what it says then.
    pub fn wait(mut self) -> Truth {
        self.stdout.read_to_string(&mut self.printed).expect("lines of text");
        let status = self.child.wait().expect("the process is ours");
        assert!(status.success(), "{status}; it said:\n{}", self.printed);
        let stolen_ns = stolen_ns() - self.stolen_before_ns;
        Truth { said: std::mem::take(&mut self.printed), stolen_ns }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the host of this virtual machine has taken from all its CPUs since it was started. Where
/// the kernel accounts for it, it is in no thread's CPU time, though the thread was on its CPU.
fn stolen_ns() -> u64 {
    /// proc_stat(5)
    const STEAL: usize = 8;
    /// USER_HZ, which is the same on all machines.
    const TICK_NS: u64 = 10_000_000;
    let stat = std::fs::read_to_string("/proc/stat").expect("every Linux has it");
    let steal = stat.split_whitespace().nth(STEAL).and_then(|ticks| ticks.parse::<u64>().ok());
    steal.expect("a number") * TICK_NS
}

/// What a program said.
#[derive(Clone, Debug)]
pub struct Truth {
    said: String,
    stolen_ns: u64,
}

/// A thread's own account of a span of its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadTruth {
    /// As the kernel knows it, too (`comm`), but for processes.
    pub name: String,
    /// Its id.
    pub tid: u32,
    /// Length of the span by `CLOCK_MONOTONIC`, nanoseconds.
    pub wall_ns: u64,
    /// CPU time in it (`CLOCK_THREAD_CPUTIME_ID`), nanoseconds.
    pub cpu_ns: u64,
    /// What the host has taken from this machine meanwhile: so much of it may be neither CPU
    /// time nor time off the CPU.
    pub stolen_ns: u64,
    /// Beginning of the span on `CLOCK_MONOTONIC`, nanoseconds.
    pub start_ns: u64,
    /// Its end.
    pub end_ns: u64,
    /// Time on a run queue according to the kernel, nanoseconds.
    pub run_delay_ns: u64,
    /// How often it left a CPU by itself.
    pub voluntary: u64,
    /// How often it had to.
    pub involuntary: u64,
}

/// The waits in one function, from before each call to after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitTruth {
    /// The thread's name.
    pub thread: String,
    /// Its id.
    pub tid: u32,
    /// The function that waits.
    pub function: String,
    /// Calls.
    pub count: u64,
    /// Their sum, nanoseconds.
    pub ns: u64,
}

/// A lock's story; `tests/workloads/contention.h` says how it is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockTruth {
    /// The program's name for it.
    pub kind: String,
    /// Where the lock begins, in the program's memory; 0 if it is not known.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// What the request threads waited altogether, nanoseconds.
    pub wait_ns: u64,
    /// What `slow_holder` held it, nanoseconds.
    pub hold_ns: u64,
    /// The part of `wait_ns` in which `slow_holder` held it.
    pub slow_ns: u64,
    /// The threads that take it.
    pub lockers: Vec<LockerTruth>,
}

impl LockTruth {
    /// Whether an address lies in the lock.
    pub fn contains(&self, address: u64) -> bool {
        (self.address..self.address + self.size).contains(&address)
    }

    /// The threads that wait for `slow_holder`.
    pub fn requests(&self) -> impl Iterator<Item = &LockerTruth> {
        self.lockers.iter().filter(|locker| locker.thread.starts_with("request"))
    }
}

/// What one thread did with a lock. Times in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockerTruth {
    /// The thread's name.
    pub thread: String,
    /// Its id.
    pub tid: u32,
    /// The function that takes the lock and gives it back.
    pub function: String,
    /// How often it did.
    pub acquisitions: u64,
    /// Time until it had the lock.
    pub wait_ns: u64,
    /// The longest of those waits.
    pub max_wait_ns: u64,
    /// Time with the lock.
    pub hold_ns: u64,
    /// The part of `wait_ns` in which `slow_holder` held the lock.
    pub slow_ns: u64,
}

impl Truth {
    /// Whether there is such a line, as `direct unsupported`.
    pub fn says(&self, line: &str) -> bool {
        self.said.lines().any(|said| said == line)
    }

    /// A number of the first line that begins with `word`: `("churn", "created")`.
    pub fn number(&self, word: &str, key: &str) -> u64 {
        let line = self.lines(word).next();
        line.unwrap_or_else(|| panic!("no line `{word}` in:\n{}", self.said)).number(key)
    }

    /// All threads' spans.
    pub fn threads(&self) -> Vec<ThreadTruth> {
        let thread = |line: Line<'_>| ThreadTruth {
            name: line.text("name").to_owned(),
            tid: line.tid(),
            wall_ns: line.number("wall_ns"),
            cpu_ns: line.number("cpu_ns"),
            stolen_ns: self.stolen_ns,
            start_ns: line.number("start_ns"),
            end_ns: line.number("end_ns"),
            run_delay_ns: line.number("run_delay_ns"),
            voluntary: line.number("voluntary"),
            involuntary: line.number("involuntary"),
        };
        self.lines("thread").map(thread).collect()
    }

    /// A thread's span.
    pub fn thread(&self, name: &str) -> ThreadTruth {
        let thread = self.threads().into_iter().find(|thread| thread.name == name);
        thread.unwrap_or_else(|| panic!("no thread {name} in:\n{}", self.said))
    }

    /// The functions that wait.
    pub fn waits(&self) -> Vec<WaitTruth> {
        let wait = |line: Line<'_>| WaitTruth {
            thread: line.text("thread").to_owned(),
            tid: line.tid(),
            function: line.text("function").to_owned(),
            count: line.number("count"),
            ns: line.number("ns"),
        };
        self.lines("wait").map(wait).collect()
    }

    /// The lock that has a slow holder.
    pub fn lock(&self) -> LockTruth {
        let locker = |line: Line<'_>| LockerTruth {
            thread: line.text("thread").to_owned(),
            tid: line.tid(),
            function: line.text("function").to_owned(),
            acquisitions: line.number("acquisitions"),
            wait_ns: line.number("wait_ns"),
            max_wait_ns: line.number("max_wait_ns"),
            hold_ns: line.number("hold_ns"),
            slow_ns: line.number("slow_ns"),
        };
        let line = self.lines("lock").next();
        let line = line.unwrap_or_else(|| panic!("no lock in:\n{}", self.said));
        LockTruth {
            kind: line.text("kind").to_owned(),
            address: line.number("address"),
            size: line.number("size"),
            wait_ns: line.number("wait_ns"),
            hold_ns: line.number("hold_ns"),
            slow_ns: line.number("slow_ns"),
            lockers: self.lines("locker").map(locker).collect(),
        }
    }

    fn lines<'a>(&'a self, word: &'a str) -> impl Iterator<Item = Line<'a>> {
        self.said.lines().map(Line::parse).filter(move |line| line.word == word)
    }
}

/// A word, and pairs of key and value.
struct Line<'a> {
    word: &'a str,
    pairs: HashMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let word = words.next().unwrap_or_default();
        Self { word, pairs: words.filter_map(|pair| pair.split_once('=')).collect() }
    }

    fn text(&self, key: &str) -> &'a str {
        let value = self.pairs.get(key);
        value.unwrap_or_else(|| panic!("no `{key}` in `{} {:?}`", self.word, self.pairs))
    }

    /// Decimal, or hexadecimal behind `0x`.
    fn number(&self, key: &str) -> u64 {
        let text = self.text(key);
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.unwrap_or_else(|error| panic!("`{key}={text}`: {error}"))
    }

    fn tid(&self) -> u32 {
        u32::try_from(self.number("tid")).expect("a thread id")
    }
}

fn seconds(duration: Duration) -> String {
    duration.as_secs_f64().to_string()
}

fn slow_holder(kind: &str) -> Command {
    let mut command = Command::new(workload("slow_holder"));
    command.arg(kind);
    command
}

fn cxx_mutex(kind: &str) -> Command {
    let program = once("cxx_mutex", |output| {
        let mut compiler = Command::new("g++");
        compiler.args(["-std=c++17", "-O2", "-g", "-fomit-frame-pointer"]);
        compiler.args(["-fno-optimize-sibling-calls", "-pthread"]);
        run(compiler.arg(source("cxx_mutex.cpp")).arg("-o").arg(output), "g++");
    });
    let mut command = Command::new(program);
    command.arg(kind);
    command
}

fn rust_mutex() -> PathBuf {
    once("rust_mutex", |output| {
        let mut compiler = Command::new("rustc");
        compiler.args(["--edition", "2024", "-O", "-g"]).arg(source("rust_mutex.rs"));
        run(compiler.arg("-o").arg(output), "rustc");
    })
}

fn parking_lot_mutex() -> PathBuf {
    let target_dir = once("parking_lot", |target_dir| {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--release", "--locked", "--manifest-path"]);
        cargo.arg(source("parking_lot/Cargo.toml")).arg("--target-dir").arg(target_dir);
        run(&mut cargo, "cargo");
    });
    target_dir.join("release/parking_lot_mutex")
}
