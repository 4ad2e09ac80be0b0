//! Programs that allocate known amounts when they are told to, with the library loaded.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::LazyLock;

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

/// Path of `libeverflame_alloc.so` as it is handed out, built with the profile `preload`.
pub(super) fn library() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
        // A folder of its own: cargo holds a lock on the other one, and this is seldom built again.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("preload");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--profile", "preload", "--package", "everflame-alloc"])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cannot run cargo");
        assert!(status.success(), "cannot build the library: {status}");
        target.join("preload/libeverflame_alloc.so")
    });
    &LIBRARY
}

/// What a program says that a function has allocated.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) function: String,
    pub(super) bytes: f64,
    pub(super) objects: f64,
    /// What of it is there when it is done.
    pub(super) live_bytes: f64,
}

impl Truth {
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
        let number = |name: &str| field(name)?.parse().ok();
        Some(Self {
            function: field("function=")?.to_owned(),
            bytes: number("bytes=")?,
            objects: number("objects=")?,
            live_bytes: number("live_bytes=")?,
        })
    }

    /// The standard error of an estimate of `bytes` of these objects.
    pub(super) fn standard_error(&self, bytes: f64, period: f64) -> f64 {
        let size = self.bytes / self.objects;
        let p = -(-size / period).exp_m1();
        // Each object is in the sum with size / p, with probability p.
        size * (bytes / size * (1.0 - p) / p).sqrt()
    }
}

/// A program that waits for a line before it begins, and for another before it ends.
pub(super) struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it has said when it allocated.
    pub(super) said: Vec<String>,
}

impl Program {
    /// Starts it with the library loaded.
    pub(super) fn start(command: &mut Command) -> Self {
        command.env("LD_PRELOAD", library());
        Self::start_without(command)
    }

    /// Starts it as it is.
    pub(super) fn start_without(command: &mut Command) -> Self {
        let mut child = command
            .env_remove("EVERFLAME_ALLOC_PERIOD")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        Self { child, stdin, lines, said: Vec::new() }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it allocate, and waits until it has.
    pub(super) fn allocate(&mut self) -> Vec<Truth> {
        writeln!(self.stdin.as_mut().unwrap()).unwrap();
        let lines = self.lines.by_ref().map(Result::unwrap);
        self.said = lines.take_while(|line| line != "done").collect();
        let truths: Vec<Truth> = self.said.iter().filter_map(|line| Truth::parse(line)).collect();
        assert!(!truths.is_empty(), "it has said {:?}", self.said);
        truths
    }

    /// Lets it end, whatever it waits for.
    pub(super) fn end(mut self) -> ExitStatus {
        drop(self.stdin.take());
        self.child.wait().unwrap()
    }

    /// How many probes are attached, as the library in it sees it.
    pub(super) fn semaphore(&self) -> u16 {
        let bytes = self.read("everflame_alloc_semaphore", 2);
        u16::from_ne_bytes([bytes[0], bytes[1]])
    }

    /// The period that it samples with.
    pub(super) fn period(&self) -> u64 {
        u64::from_ne_bytes(self.read("everflame_alloc_period", 8).try_into().unwrap())
    }

    /// Whether the code of the functions that are probed is what the file has.
    pub(super) fn has_its_own_code(&self) -> bool {
        ["everflame_alloc_sampled", "everflame_free_sampled"].iter().all(|name| {
            let (file, svma) = (std::fs::read(library()).unwrap(), find(name));
            let parsed = object::File::parse(&*file).unwrap();
            let mut segments = parsed.segments();
            let code = segments.find_map(|s| s.data_range(svma, 4).ok().flatten()).unwrap();
            self.read(name, 4) == code
        })
    }

    /// Memory of the library's.
    fn read(&self, symbol: &str, len: usize) -> Vec<u8> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap();
        // The first mapping is that of the file's begin, which has address 0 there.
        let first = maps.lines().find(|line| line.ends_with("/libeverflame_alloc.so"));
        let start = first.and_then(|line| line.split('-').next()).unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let mut bytes = vec![0; len];
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.pid())).unwrap();
        memory.read_exact_at(&mut bytes, start + find(symbol)).unwrap();
        bytes
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Address of a symbol of the library.
fn find(name: &str) -> u64 {
    let file = std::fs::read(library()).unwrap();
    let parsed = object::File::parse(&*file).unwrap();
    let mut symbols = parsed.dynamic_symbols();
    let symbol = symbols.find(|symbol| symbol.name() == Ok(name)).unwrap();
    symbol.address()
}
