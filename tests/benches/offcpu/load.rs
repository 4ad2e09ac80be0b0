//! The programs that are measured, of `perf bench`: they do nothing but switch.

use std::process::{Command, Stdio};

/// A program, and how long it takes.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) name: &'static str,
    is_pinned: bool,
    /// Some one to two seconds of work.
    arguments: &'static [&'static str],
}

/// Two processes that wake each other in turn through pipes, on one CPU: each write is a switch.
pub(crate) const PIPE_PINNED: Load =
    Load { name: "pipe_pinned", is_pinned: true, arguments: &["pipe", "--loop", "400000"] };

/// The same on two CPUs, or on whichever the scheduler chooses.
pub(crate) const PIPE: Load =
    Load { name: "pipe", is_pinned: false, arguments: &["pipe", "--loop", "200000"] };

/// 400 processes that send messages to each other.
pub(crate) const MESSAGING: Load =
    Load { name: "messaging", is_pinned: false, arguments: &["messaging", "--nr_loops", "500"] };

impl Load {
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
