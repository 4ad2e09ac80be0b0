//! The programs that are measured, of `perf bench`: they do nothing but switch.

use std::process::{Command, Stdio};

use everflame_tests::cost::median;

/// A program, and how long it takes.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    is_pinned: bool,
    /// Some tenths of a second of work.
    arguments: &'static [&'static str],
}

/// Two processes that wake each other in turn through pipes, on one CPU: each write is a switch.
pub(crate) const PIPE_PINNED: Load =
    Load { name: "pipe_pinned", is_pinned: true, arguments: &["pipe", "--loop", "60000"] };

/// The same wherever the scheduler puts them: side by side on one CPU, or on two that sleep and
/// have to be woken, which on a virtual machine takes several times as long.
pub(crate) const PIPE: Load =
    Load { name: "pipe", is_pinned: false, arguments: &["pipe", "--loop", "40000"] };

/// 400 processes that send messages to each other, as many as `perf bench` has them send.
pub(crate) const MESSAGING: Load =
    Load { name: "messaging", is_pinned: false, arguments: &["messaging"] };

/// Runs that make a value. Where the scheduler happens to put a pair of processes matters more than
/// anything that is measured here.
const RUNS: usize = 3;

impl Load {
    /// Runs it some times; the median of the seconds that it says it took.
    pub(crate) fn seconds(&self) -> f64 {
        median(&mut [(); RUNS].map(|()| self.run()))
    }

    /// Runs it; the seconds that it says it took.
    pub(crate) fn run(&self) -> f64 {
        let mut command = Command::new(if self.is_pinned { "taskset" } else { "perf" });
        if self.is_pinned {
            // The first one is where interrupts go.
            let cpus = std::thread::available_parallelism().unwrap().get();
            command.arg("--cpu-list").arg(1.min(cpus - 1).to_string()).arg("perf");
        }
        command.args(["bench", "--format=simple", "sched"]).args(self.arguments);
        let output = command.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let seconds = stdout.trim().parse::<f64>();
        seconds.unwrap_or_else(|_| {
            panic!("{command:?} says `{stdout}` {}", String::from_utf8_lossy(&output.stderr))
        })
    }
}

/// Whether there is what they need.
pub(crate) fn is_installed() -> bool {
    let starts = |program| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    starts("perf") && starts("taskset")
}
