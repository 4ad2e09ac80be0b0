//! A network namespace.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{random, run};

/// One of its own, with nothing but a loopback; removed when it goes out of scope.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Namespace {
    /// Makes one.
    pub fn new() -> Self {
        let namespace = Self { name: format!("everflame-test-{:016x}", random()) };
        run(Command::new("ip").args(["netns", "add", &namespace.name]));
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Its name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// The number that it is known by, as in /proc/PID/ns/net.
    pub fn inode(&self) -> u64 {
        fs::metadata(self.path()).expect("namespaces are files").ino()
    }

    /// A program to be run in it. Its process id is that of the command.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// The same program with the same arguments, to be run in it.
    pub fn enter(&self, command: &Command) -> Command {
        let mut entered = self.command(command.get_program());
        entered.args(command.get_args());
        entered
    }

    /// What the kernel has counted in it, as `("Tcp", "RetransSegs")` of /proc/net/snmp, or of
    /// /proc/net/netstat.
    pub fn counter(&self, group: &str, name: &str) -> u64 {
        let output = run(self.command("cat").args(["/proc/net/snmp", "/proc/net/netstat"]));
        let text = String::from_utf8(output.stdout).expect("the kernel writes text");
        let prefix = format!("{group}:");
        // A line of names, and one of as many numbers.
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        let (names, numbers) = (lines.next(), lines.next());
        let none = || panic!("this kernel does not count {group} {name}");
        let (names, numbers) = names.zip(numbers).unwrap_or_else(none);
        let mut both = names.split_whitespace().zip(numbers.split_whitespace());
        let (_, number) = both.find(|(found, _)| *found == name).unwrap_or_else(none);
        number.parse().expect("a number")
    }

    /// Changes it by `ip`.
    pub(super) fn ip(&self, arguments: &[&str]) {
        run(Command::new("ip").args(["-netns", &self.name]).args(arguments));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}
