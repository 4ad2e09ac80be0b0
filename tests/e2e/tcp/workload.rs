//! Something that talks over TCP, recorded.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use everflame_tests::net::Link;
use everflame_tests::profile::{Sample, read};
use everflame_tests::program::{Running, everflame, scratch_dir, wait_for};
use everflame_tests::tcp::{Server, Serving};
use everflame_tests::waits::{Program, Truth};

/// A recording that goes on.
pub(super) struct Recording {
    running: Running,
    output: PathBuf,
}

impl Recording {
    /// Of all processes.
    pub(super) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments.
    pub(super) fn start_with(arguments: &[&str]) -> Self {
        let output = scratch_dir().join("tcp.pb.gz");
        let mut command = everflame();
        // Ended by Ctrl-C.
        command.args(["record", "--kind", "tcp", "--duration", "10m", "-o"]).arg(&output);
        let running = Running::start(command.args(arguments).stdout(Stdio::null()));
        wait_for("the recording has begun", || is_following(running.pid()));
        std::thread::sleep(Duration::from_millis(200));
        Self { running, output }
    }

    /// Ends it.
    pub(super) fn finish(mut self) -> Vec<Sample> {
        let status = self.running.interrupt();
        assert!(status.success(), "{}", self.running.log());
        read(&self.output).1
    }
}

/// What the client said, and the server.
pub(super) struct Truths {
    pub(super) client: Truth,
    pub(super) server: Truth,
}

/// Runs a client to its end, and ends the server then. Both are recorded.
pub(super) fn record(link: &Link, client: &Command, server: Server) -> (Truths, Vec<Sample>) {
    let recording = Recording::start();
    let client = run(link, client);
    let server = server.finish();
    (Truths { client, server }, recording.finish())
}

/// Starts a server at the one end.
pub(super) fn serve(link: &Link, how: Serving) -> Server {
    Server::start(Some(&link.server.namespace), (link.server.v4, 0), how)
}

/// Starts a client at the other end. It does not begin yet.
pub(super) fn start(link: &Link, client: &Command) -> Program {
    Program::start(&mut link.client.namespace.enter(client))
}

/// Runs one to its end.
pub(super) fn run(link: &Link, client: &Command) -> Truth {
    let client = start(link, client);
    // Where a program is unwound that is new, its tables are made at first. Many are over in less time.
    std::thread::sleep(Duration::from_secs(1));
    client.finish()
}

/// Whether a process has attached its BPF programs.
fn is_following(pid: u32) -> bool {
    const LINKS: usize = 6;
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    let links = entries.flatten().filter(|entry| {
        std::fs::read_to_string(entry.path()).is_ok_and(|info| info.contains("link_type:"))
    });
    links.count() >= LINKS
}
