//! Runs the program that is tested.
#![allow(dead_code, reason = "each test binary uses some of this")]

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// What was printed by a run that had nothing to complain about.
    pub(crate) fn success(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }
}

pub(crate) fn everflame(dir: &Path, arguments: &str) -> Outcome {
    everflame_with_stdin(dir, arguments, b"")
}

pub(crate) fn everflame_with_stdin(dir: &Path, arguments: &str, stdin: &[u8]) -> Outcome {
    let mut child = start(dir, arguments);
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Arguments are separated by spaces.
pub(crate) fn start(dir: &Path, arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_everflame"))
        .args(arguments.split_whitespace())
        .current_dir(dir)
        .env_remove("EVERFLAME_SERVER")
        .env_remove("COLUMNS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
