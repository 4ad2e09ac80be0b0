//! Everything busy at once: programs in several languages, and what share of their user stacks
//! is complete.
//!
//! Complete means that the walk ended where its rules say that the stack ends (at `_start`, where
//! a thread or a goroutine begins), named or not. Programs are told apart by the process that
//! was started and its descendants. Sampling begins before the programs do, and every sample
//! behind the warm-up counts.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use everflame_agent::collect::{CollectConfig, Collector, Event, ProcessEvent, Sample};
use everflame_agent::process::{Backing, Mappings, ProcessTable};
use everflame_agent_common::unwind::Stop;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::program::unwind_cache_dir;
use crate::workload::{java_workload, source, workload};

/// What is expected of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    /// Compiled ahead of time: at least 99 % of its stacks are complete.
    Native,
    /// Generated at run time, with frame pointers: 95 %.
    Generated,
    /// Generated, without frame pointers: in 99 % the walk reaches generated code, or the end.
    GeneratedWithoutFramePointers,
}

/// What was seen of one program.
#[derive(Debug)]
pub struct Outcome {
    /// For people.
    pub name: &'static str,
    code: Code,
    /// User stacks.
    pub stacks: u64,
    /// Those that are as complete as they can be.
    pub complete: u64,
    /// Those that reach the outermost frame.
    pub to_the_end: u64,
    /// Those that were finished in user space.
    pub finished: u64,
    /// Why the incomplete ones end, and where: (reason, file and offset of the last frame).
    incomplete: BTreeMap<(&'static str, String), u64>,
}

impl Outcome {
    fn new(name: &'static str, code: Code) -> Self {
        Self {
            name,
            code,
            stacks: 0,
            complete: 0,
            to_the_end: 0,
            finished: 0,
            incomplete: BTreeMap::new(),
        }
    }

    /// The share that is complete.
    pub fn share(&self) -> f64 {
        self.complete as f64 / self.stacks.max(1) as f64
    }

    /// The share that should be.
    pub fn target(&self) -> f64 {
        if self.code == Code::Generated { 0.95 } else { 0.99 }
    }

    /// Whether it is, and enough was seen to tell.
    pub fn is_met(&self) -> bool {
        self.stacks >= 100 && self.share() >= self.target()
    }

    fn add(&mut self, sample: &Sample, mappings: &Mappings) {
        if sample.user_stop == Stop::Absent {
            return;
        }
        let place = |(index, avma): (usize, &u64)| {
            // A return address may lie behind its mapping.
            mappings.find(avma.saturating_sub(u64::from(index > 0)))
        };
        let reaches_generated = sample.user.iter().enumerate().any(|frame| {
            place(frame).is_some_and(|mapping| matches!(mapping.backing, Backing::Anonymous))
        });
        self.stacks += 1;
        let ends = sample.user_stop == Stop::End;
        self.to_the_end += u64::from(ends);
        let enough = self.code == Code::GeneratedWithoutFramePointers && reaches_generated;
        if ends || enough {
            self.complete += 1;
            return;
        }
        let last = sample.user.iter().enumerate().next_back();
        let last = last.map_or_else(String::new, |frame| match place(frame) {
            Some(mapping) => format!("{}+{:#x}", mapping.path, mapping.offset_of(*frame.1)),
            None => format!("{:#x}", frame.1),
        });
        *self.incomplete.entry((sample.user_stop.name(), last)).or_default() += 1;
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: u64| 100.0 * part as f64 / self.stacks.max(1) as f64;
        write!(
            f,
            "{:<24} {:>7} stacks {:>8.3} % complete (target {:.0} %), {:.3} % to the end, {:.3} % in user space",
            self.name,
            self.stacks,
            percent(self.complete),
            100.0 * self.target(),
            percent(self.to_the_end),
            percent(self.finished)
        )?;
        let mut reasons = BTreeMap::<&str, u64>::new();
        for ((reason, _), count) in &self.incomplete {
            *reasons.entry(reason).or_default() += count;
        }
        for (reason, count) in reasons {
            write!(f, "; {reason} {:.3} %", percent(count))?;
        }
        let mut places: Vec<_> = self.incomplete.iter().collect();
        places.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for ((reason, place), count) in places.into_iter().take(5) {
            write!(f, "\n    {count:>6} {reason} at {place}")?;
        }
        Ok(())
    }
}

/// Lets all programs run at once for some time, on all CPUs, and looks at their stacks.
pub fn measure(warm_up: Duration, span: Duration, rate_hz: u64) -> Vec<Outcome> {
    let dir = TempDir::new().expect("a temporary directory");
    let programs = programs(dir.path());
    let mut config = CollectConfig::at_rate(rate_hz);
    config.unwind.cache_dir = Some(unwind_cache_dir());
    let mut collector = Collector::start(&config).expect("the kernel can be sampled");
    let mut outcomes = Vec::new();
    let mut running = Vec::new();
    // The program that each process belongs to.
    let mut owners = HashMap::new();
    for (index, (name, code, command)) in programs.into_iter().enumerate() {
        let group = Group::start(command);
        owners.insert(group.0.id(), index);
        outcomes.push(Outcome::new(name, code));
        running.push(group);
    }

    let mut processes = ProcessTable::default();
    // Walks that met a file without a table, and wait for it.
    let mut unfinished: HashMap<u64, (usize, Sample, Arc<Mappings>)> = HashMap::new();
    let mut last_id = 0;
    let mut counts_from = Some(Instant::now() + warm_up);
    let end = Instant::now() + warm_up + span;
    while Instant::now() < end {
        if counts_from.is_some_and(|time| Instant::now() >= time) {
            counts_from = None;
            for outcome in &mut outcomes {
                *outcome = Outcome::new(outcome.name, outcome.code);
            }
        }
        collector.wait(Instant::now() + Duration::from_millis(100)).expect("events arrive");
        let mut without_table = Vec::new();
        collector.drain(|time_ns, event| match event {
            Event::Process(event) => {
                if let ProcessEvent::Fork { pid, parent } = event
                    && let Some(&owner) = owners.get(&parent)
                {
                    // A process id may have belonged to another before.
                    owners.insert(pid, owner);
                }
                processes.apply(time_ns, event);
            }
            Event::Sample(sample) => {
                let Some(&owner) = owners.get(&sample.pid) else { return };
                let mappings = Arc::clone(&processes.get_mut(sample.pid).mappings);
                if sample.stack_copy.is_some() {
                    without_table.push((owner, sample, mappings));
                } else {
                    outcomes[owner].add(&sample, &mappings);
                }
            }
            Event::OutOfMemory { .. } => {}
        });
        for (owner, mut sample, mappings) in without_table {
            last_id += 1;
            if collector.finish(last_id, &mut sample, &mappings) {
                unfinished.insert(last_id, (owner, sample, mappings));
            } else {
                outcomes[owner].add(&sample, &mappings);
            }
        }
        for finished in collector.finished() {
            if let Some((owner, mut sample, mappings)) = unfinished.remove(&finished.id) {
                sample.user = finished.frames.into();
                sample.user_stop = finished.stop;
                outcomes[owner].finished += 1;
                outcomes[owner].add(&sample, &mappings);
            }
        }
    }
    for (owner, sample, mappings) in unfinished.into_values() {
        outcomes[owner].add(&sample, &mappings);
    }
    outcomes
}

/// A program and what it starts, all of which are killed when this goes out of scope.
struct Group(Child);

impl Group {
    fn start(mut command: Command) -> Self {
        let null = || Stdio::null();
        command.process_group(0).stdin(null()).stdout(null()).stderr(null());
        Self(command.spawn().unwrap_or_else(|error| {
            panic!("{command:?} (`cargo xtask setup --tests` installs it): {error}")
        }))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = self.0.wait();
    }
}

/// Longer than any measurement; each is killed at its end.
const SECONDS: &str = "3600";

fn programs(dir: &Path) -> Vec<(&'static str, Code, Command)> {
    let command = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(dir);
        command
    };
    let forever =
        |what: &str| command(Path::new("sh"), &["-c", &format!("while :; do {what}; done")]);
    let java = |arguments: &[&str]| {
        let mut java = command(Path::new("java"), arguments);
        java.arg("-cp").arg(java_workload("Busy")).args(["Busy", SECONDS]);
        java
    };
    let deep = workload("deep");
    let (python, node) = (source("busy.py"), source("busy.js"));
    let large = write(dir, "large.c", &large_source());
    let query = write(dir, "query.sql", QUERY);
    let openssl = "openssl speed -seconds 1 sha512 rsa2048 ecdsap256; \
                   openssl speed -seconds 1 -evp aes-256-gcm; \
                   openssl speed -seconds 1 -evp chacha20-poly1305";
    // Debian's interpreter rather than one that a version manager has put in front of it.
    let python3 = Path::new("/usr/bin/python3");
    let python3 = if python3.exists() { python3 } else { Path::new("python3") };
    let path = |path: &Path| path.display().to_string();
    vec![
        ("C, 22 frames", Code::Native, command(&deep, &["22", SECONDS])),
        ("C, 200 frames", Code::Native, command(&deep, &["200", SECONDS])),
        ("C, 22 frames, kernel", Code::Native, command(&deep, &["22", SECONDS, "kernel"])),
        ("python3", Code::Native, command(python3, &[&path(&python), SECONDS])),
        ("openssl speed", Code::Native, forever(openssl)),
        ("sqlite3", Code::Native, forever(&format!("sqlite3 :memory: < {}", path(&query)))),
        ("gcc", Code::Native, forever(&format!("gcc -O2 -c {} -o large.o", path(&large)))),
        ("node", Code::Generated, command(Path::new("node"), &[&path(&node), SECONDS])),
        ("java, frame pointers", Code::Generated, java(&["-XX:+PreserveFramePointer"])),
        ("java", Code::GeneratedWithoutFramePointers, java(&[])),
    ]
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).expect("a file");
    path
}

const QUERY: &str = "
CREATE TABLE orders AS
  WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
  SELECT i AS id, i * 7919 % 1009 AS customer, printf('item %d', i % 97) AS item FROM n;
CREATE INDEX by_customer ON orders (customer);
SELECT item, count(*), sum(length(hex(id))) FROM orders GROUP BY item ORDER BY 3 DESC LIMIT 5;
SELECT count(*) FROM orders a JOIN orders b ON a.customer = b.customer AND a.id < b.id WHERE a.id % 50 = 0;
SELECT count(*) FROM orders WHERE item LIKE '%7%' OR item GLOB '*1[0-5]';
";

/// Many functions of some size, for a compiler.
fn large_source() -> String {
    use fmt::Write as _;
    let mut text = String::from("typedef unsigned long u;\n");
    for number in 0..1500 {
        let _ = writeln!(
            text,
            "u f{number}(u a, u *p, u n) {{ u s = a; for (u i = 0; i < n; i++) {{ \
             if (p[i] & {mask}) s += p[i] * {number}u; else s ^= p[n - i] >> {shift}; \
             switch (s % 7) {{ case 0: s += 3; break; case 1: s *= 5; break; \
             case 2: s -= p[0]; break; case 5: s = ~s; }} }} return s; }}",
            mask = number % 31 + 1,
            shift = number % 13,
        );
    }
    text
}
