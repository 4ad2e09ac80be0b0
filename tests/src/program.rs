//! The programs under test, as processes.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a program may take to start or to stop. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// `everflame`, built in the same profile as the test.
pub fn everflame() -> Command {
    Command::new(binary("everflame"))
}

/// A directory that lasts as long as the test process.
pub fn scratch_dir() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    DIR.get_or_init(|| TempDir::with_prefix("everflame-tests-").expect("a temporary directory"))
        .path()
}

/// Where agents of this test process keep compiled unwind tables: those of other versions are not
/// to be found there.
pub fn unwind_cache_dir() -> PathBuf {
    scratch_dir().join("unwind")
}

/// A program of this workspace. Tests lie in `target/PROFILE/deps`, programs one above.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    let profile_dir = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    let binary = profile_dir.join(name);
    assert!(
        binary.exists(),
        "{} is not built; run `cargo xtask test`, or `cargo build --workspace --bins` first",
        binary.display()
    );
    binary
}

/// A process that is killed when it goes out of scope.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts a program; what it prints to stderr can be read with [`Self::log`].
    pub fn start(command: &mut Command) -> Self {
        let log = tempfile::Builder::new()
            .prefix("log-")
            .tempfile_in(scratch_dir())
            .expect("a log file")
            .into_temp_path()
            .keep()
            .expect("a log file that stays");
        let stderr = File::create(&log).expect("the log file");
        let child = command
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks it to stop (SIGTERM) and waits.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Presses Ctrl-C (SIGINT) and waits.
    pub fn interrupt(&mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.wait()
    }

    /// Kills it (SIGKILL) and waits.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the process is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end; it said:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = kill_process(pid.expect("a process id"), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A collector on a free port of the loopback.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Running,
    /// Where it listens, such as `127.0.0.1:40123`.
    pub address: String,
}

impl Server {
    /// Starts one on a data directory, at `address` (port 0 for a free one).
    pub fn start(data_dir: &Path, address: &str) -> Self {
        let mut command = Command::new(binary("everflame-server"));
        command.arg("--data-dir").arg(data_dir).args(["--listen", address]).stdout(Stdio::piped());
        let mut process = Running::start(&mut command);
        let stdout = process.child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("the collector's first line");
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("unexpected `{line}`; it said:\n{}", process.log()))
            .to_owned();
        Self { process, address }
    }

    /// Its address for agents and people.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// An agent that delivers to a collector.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub process: Running,
    /// Where its metrics are.
    pub metrics_address: String,
}

impl Agent {
    /// Starts one with short windows, and further arguments.
    pub fn start(server_url: &str, spool_dir: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary("everflame-agent"));
        command
            .args(["--server", server_url, "--metrics", "127.0.0.1:0", "--spool-dir"])
            .arg(spool_dir)
            .arg("--unwind-cache-dir")
            .arg(unwind_cache_dir())
            .args(arguments)
            .stdout(Stdio::null());
        let process = Running::start(&mut command);
        let deadline = Instant::now() + PATIENCE;
        let metrics_address = loop {
            let log = process.log();
            let after = log.split("metrics on http://").nth(1);
            let address = after.and_then(|rest| rest.split("/metrics").next());
            // Metrics are served before the kernel is asked for samples.
            if let Some(address) = address.filter(|_| log.contains("sampling has begun")) {
                break address.to_owned();
            }
            assert!(Instant::now() < deadline, "the agent does not start; it said:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        Self { process, metrics_address }
    }

    /// All lines of its metrics.
    pub fn metrics(&self) -> String {
        http_get(&self.metrics_address, "/metrics").1
    }

    /// The sum of all series of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, &[])
    }

    /// The sum of those series of a metric that have these labels.
    pub fn metric_with(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        self.metrics()
            .lines()
            .filter(|line| line.split([' ', '{']).next() == Some(name))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

/// Asks until `condition` holds; panics when it never does.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A GET over plain HTTP/1.1: (status, body).
pub fn http_get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address)
        .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("the request can be sent");
    let mut response = Vec::new();
    stream.read_to_end(&mut response).expect("the response can be read");
    let response = String::from_utf8_lossy(&response);
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_owned())
}
