//! Programs that allocate when they are told to, and say what.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use everflame_profile::{DecodeLimits, decode, pprof};

use crate::profile;
use crate::program::wait_for;

/// What a function has allocated.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// Its name.
    pub function: String,
    /// Bytes that it asked for.
    pub bytes: f64,
    /// How often.
    pub objects: f64,
    /// Bytes of these that it still has in the end.
    pub live_bytes: f64,
}

impl Truth {
    fn read(line: &str) -> Self {
        let field = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.unwrap_or_else(|| panic!("no {name} in {line}"))
        };
        let number = |name: &str| field(name).parse().unwrap_or_else(|_| panic!("{line}"));
        Self {
            function: field("function=").to_owned(),
            bytes: number("bytes="),
            objects: number("objects="),
            live_bytes: number("live_bytes="),
        }
    }

    /// The standard errors, as shares of the truth, of bytes and of objects that samples with this mean distance
    /// add up to. Of objects that are sampled with probability p each stands for 1 / p: with a variance of
    /// (1 - p) / p for each. Objects of several sizes are taken for as many of their mean size.
    pub fn standard_error(&self, period: f64) -> f64 {
        let p = -(-self.bytes / self.objects / period).exp_m1();
        ((1.0 - p) / p / self.objects).sqrt()
    }
}

/// A program that waits for a line before it begins and another before it ends.
#[derive(Debug)]
pub struct Allocating {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Allocating {
    /// Starts it and waits until it is ready.
    pub fn start(program: &Path) -> Self {
        Self::start_command(&mut Command::new(program))
    }

    /// The same, of a command with arguments or an environment.
    pub fn start_command(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut this = Self { child, stdin, stdout };
        assert_eq!(this.line(), "ready");
        this
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it allocate, and waits until it is done.
    pub fn allocate(&mut self) -> Vec<Truth> {
        self.begin();
        let mut truth = Vec::new();
        loop {
            let line = self.line();
            if line == "done" {
                return truth;
            }
            truth.push(Truth::read(&line));
        }
    }

    /// Has it allocate, and does not wait.
    pub fn begin(&mut self) {
        writeln!(self.stdin).expect("it reads its input");
    }

    /// Has it end, which it should do well.
    pub fn finish(mut self) {
        writeln!(self.stdin).expect("it reads its input");
        let status = self.child.wait().expect("the process is ours");
        assert!(status.success(), "{status}");
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.child.kill().expect("the process is ours");
        self.child.wait().expect("the process is ours");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("its output can be read");
        line.trim().to_owned()
    }
}

impl Drop for Allocating {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many bytes of a process's code are not those of its files: traps. 0 for a process that is gone.
pub fn probed_bytes(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut mapped = None;
    let mut bytes = 0;
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields[0].contains('-') {
            mapped = code_of_file(&fields);
        } else if fields[0] == "Anonymous:"
            && fields[1] != "0"
            && let Some((memory, offset, path)) = &mapped
        {
            // Pages of its own stay when the traps in them are gone.
            bytes += differences(pid, memory, *offset, path).unwrap_or(0);
        }
    }
    bytes
}

/// Of a line of /proc/PID/maps: where code is, and of which file.
fn code_of_file(fields: &[&str]) -> Option<(Range<u64>, u64, String)> {
    let [range, "r-xp", offset, _, _, path] = fields else { return None };
    let (start, end) = range.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    path.starts_with('/').then_some(())?;
    Some((number(start)?..number(end)?, number(offset)?, (*path).to_owned()))
}

fn differences(pid: u32, memory: &Range<u64>, offset: u64, path: &str) -> Option<usize> {
    let mut in_memory = vec![0; usize::try_from(memory.end - memory.start).ok()?];
    let mut in_file = in_memory.clone();
    File::open(format!("/proc/{pid}/mem"))
        .ok()?
        .read_exact_at(&mut in_memory, memory.start)
        .ok()?;
    // The last page goes on beyond the file, as zeros.
    let read = File::open(path).ok()?.read_at(&mut in_file, offset).ok()?;
    // Whole pages first, as nearly all are the same.
    let pages = in_memory[..read].chunks(4096).zip(in_file.chunks(4096));
    let differing = pages.filter(|(memory, file)| *memory != &file[..memory.len()]);
    Some(differing.map(|(a, b)| a.iter().zip(b).filter(|(a, b)| a != b).count()).sum())
}

/// Waits until a process has its probes.
pub fn wait_for_probes(pid: u32) {
    // One file after the other is probed.
    let mut before = 0;
    wait_for("probes in the process", || {
        let now = probed_bytes(pid);
        let is_settled = now > 0 && now == before;
        before = now;
        is_settled
    });
}

/// All that a profile says of allocations below a function: values in the order of Go's heap profiles.
pub fn values_of(path: &Path, function: &str) -> [f64; 4] {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let profile = decode(&bytes, &DecodeLimits::default()).expect("a valid profile");
    assert_eq!(sample_types(&profile), SAMPLE_TYPES);
    let mut sums = [0.0; 4];
    let samples = profile::samples(&profile);
    for (sample, values) in samples.iter().zip(&profile.sample) {
        if sample.has(function) {
            for (sum, value) in sums.iter_mut().zip(&values.value) {
                *sum += *value as f64;
            }
        }
    }
    sums
}

const SAMPLE_TYPES: [&str; 4] = ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"];

fn sample_types(profile: &pprof::Profile) -> Vec<&str> {
    let text = |index: i64| usize::try_from(index).ok().and_then(|i| profile.string_table.get(i));
    profile.sample_type.iter().filter_map(|kind| text(kind.r#type)).map(String::as_str).collect()
}
