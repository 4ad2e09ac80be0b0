//! `tests/workloads/pairs.c`, which allocates and frees, and measures itself.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use everflame_tests::workload::workload;

/// It, running.
pub(crate) struct Pairs {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Pairs {
    /// Starts it with variables in its environment; a measurement is of so many pairs.
    pub(crate) fn start(pairs: &str, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(workload("pairs"))
            .arg(pairs)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut pairs = Self { child, stdin, stdout };
        assert_eq!(pairs.line(), "ready");
        pairs
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Nanoseconds of a pair by a function.
    pub(crate) fn ns(&mut self, function: &str) -> f64 {
        writeln!(self.stdin, "{function}").unwrap();
        let line = self.line();
        let field = line.split(' ').find_map(|word| word.strip_prefix("ns="));
        field.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Pairs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
