//! redis as Debian has it: a server of one's own, on a socket in a directory of one's own.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::program::{Running, wait_for};

/// A server that is killed when it goes out of scope.
#[derive(Debug)]
pub struct Redis {
    /// The process.
    pub process: Running,
    socket: PathBuf,
}

impl Redis {
    /// Starts one in `dir`, by a command that `prepare` may add to, and waits until it answers.
    pub fn start(dir: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        let socket = dir.join("redis.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(server_in(dir));
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
        command.arg(&socket).arg("--dir").arg(dir).stdout(Stdio::null());
        prepare(&mut command);
        let redis = Self { process: Running::start(&mut command), socket };
        wait_for("redis answers", || redis.cli(&["ping"]).trim() == "PONG");
        redis
    }

    /// What it answers.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        let output = command.arg("-s").arg(&self.socket).args(arguments).output();
        String::from_utf8_lossy(&output.expect("redis-cli is installed with redis").stdout)
            .into_owned()
    }

    /// `redis-benchmark` against it.
    pub fn benchmark(&self) -> Command {
        let mut command = Command::new("redis-benchmark");
        command.arg("-s").arg(&self.socket);
        command
    }

    /// Stores as many objects of a kilobyte, under names that are all different.
    pub fn fill(&self, objects: u64) {
        let mut command = self.benchmark();
        let done = command
            .args(["-t", "set", "-d", "1000", "-P", "32", "-r", "1000000000", "-q", "-n"])
            .arg(objects.to_string())
            .stdout(Stdio::null())
            .status()
            .expect("redis-benchmark is installed with redis");
        assert!(done.success(), "{command:?}: {done}");
    }
}

/// The server under its own name. Where no package of the server is installed, the one with its tools
/// has the same program under another name: which one it is, it finds out by its name.
fn server_in(dir: &Path) -> PathBuf {
    let installed = ["redis-server", "redis-check-rdb"].into_iter().find_map(|name| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
    });
    let installed = installed
        .unwrap_or_else(|| panic!("no redis-server (`cargo xtask setup --tests` installs it)"));
    let server = dir.join("redis-server");
    if !server.exists() {
        symlink(installed, &server).expect("a link in a directory of our own");
    }
    server
}
