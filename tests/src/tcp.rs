//! Programs that talk over TCP with known answers: `tests/workloads/tcp_server.c` and `tcp_client.c`, where it is
//! written what they do and say.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::net::Namespace;
use crate::waits::{Program, Truth};
use crate::workload::workload;

/// How a client connects, and what it does with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// In `connect`; closes when it is there.
    Blocking,
    /// In `poll`.
    Nonblocking,
    /// Gives up after two or three seconds.
    Impatient,
    /// Closes the socket after 100 ms.
    Abort,
    /// Closes the connection by a reset.
    Reset,
    /// As [`Self::Blocking`], each to another address: one of IPv4 and those that follow it.
    Spread,
}

/// How requests and answers follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One write, one answer.
    Single,
    /// A header, 5 ms later a body, and one answer.
    Parts,
    /// Three requests, then three answers.
    Pipelined,
    /// Both ends send every millisecond.
    Stream,
    /// 256 KiB there and back.
    Bulk,
}

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Accepts after some time, and takes some time for its answers.
    Answers {
        /// From when there is a connection to when it is accepted.
        accept: Duration,
        /// From when a request was read to when it is answered.
        answer: Duration,
    },
    /// Only reads.
    Drains,
}

impl Serving {
    /// Accepts at once, and answers after this time.
    pub const fn answers_after(answer: Duration) -> Self {
        Self::Answers { accept: Duration::ZERO, answer }
    }
}

/// A server, killed when it goes out of scope.
#[derive(Debug)]
pub struct Server {
    program: Program,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts one at an address of this host, or of a namespace. The kernel chooses the port if that is 0.
    pub fn start(
        namespace: Option<&Namespace>,
        address: impl Into<SocketAddr>,
        how: Serving,
    ) -> Self {
        let mut address = address.into();
        let mut command = Command::new(workload("tcp_server"));
        command.arg(address.ip().to_string()).arg(address.port().to_string());
        match how {
            Serving::Answers { accept, answer } => {
                command.args([accept, answer].map(|time| (time.as_secs_f64() * 1e3).to_string()))
            }
            Serving::Drains => command.arg("drain"),
        };
        if let Some(namespace) = namespace {
            command = namespace.enter(&command);
        }
        let program = Program::start(&mut command);
        address.set_port(u16::try_from(program.number("listening", "port")).expect("a port"));
        Self { program, address }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Ends it; what it says then.
    pub fn finish(self) -> Truth {
        self.program.finish()
    }
}

/// A client that connects `count` times altogether.
pub fn connect(how: How, address: SocketAddr, threads: usize, count: usize) -> Command {
    let how = match how {
        How::Blocking => "blocking",
        How::Nonblocking => "nonblocking",
        How::Impatient => "impatient",
        How::Abort => "abort",
        How::Reset => "reset",
        How::Spread => "spread",
    };
    client(&["connect", how], address, &[threads, count])
}

/// A client that makes requests: `rounds` times `threads` connections, `requests` (of a stream: milliseconds) on
/// each.
pub fn request(
    shape: Shape,
    address: SocketAddr,
    threads: usize,
    rounds: usize,
    requests: usize,
) -> Command {
    let shape = match shape {
        Shape::Single => "single",
        Shape::Parts => "parts",
        Shape::Pipelined => "pipelined",
        Shape::Stream => "stream",
        Shape::Bulk => "bulk",
    };
    client(&["request", shape], address, &[threads, rounds, requests])
}

/// A client that keeps `count` connections open, with `before` requests on each before it is ready, and `after`
/// when it is told to begin.
pub fn hold(address: SocketAddr, count: usize, before: usize, after: usize) -> Command {
    client(&["hold"], address, &[count, before, after])
}

/// A client that uses one socket for `rounds` connections to each of two ports in turn, with `requests` on each. It
/// tells of those to the second one.
pub fn again(address: SocketAddr, other_port: u16, rounds: usize, requests: usize) -> Command {
    client(&["again"], address, &[other_port.into(), rounds, requests])
}

/// What a program has measured. Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latencies {
    /// How many.
    pub count: u64,
    /// Half of them were shorter.
    pub median_ns: u64,
    /// Nine of ten were.
    pub p90_ns: u64,
    /// Their sum.
    pub total_ns: u64,
}

impl Latencies {
    /// Those of `connect`, `accept`, `request`, `answer`, or of connects that failed with `ECONNREFUSED` and so on.
    pub fn of(truth: &Truth, word: &str) -> Self {
        let number = |key| truth.number(word, key);
        Self {
            count: number("count"),
            median_ns: number("median_ns"),
            p90_ns: number("p90_ns"),
            total_ns: number("total_ns"),
        }
    }
}

fn client(mode: &[&str], address: SocketAddr, numbers: &[usize]) -> Command {
    let mut command = Command::new(workload("tcp_client"));
    command.args(mode).arg(address.ip().to_string()).arg(address.port().to_string());
    command.args(numbers.iter().map(usize::to_string));
    command
}
