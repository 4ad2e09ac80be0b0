//! postgresql as Debian has it: a server of one's own, on a socket in a directory of one's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use everflame_tests::program::{Running, wait_for};
use tempfile::TempDir;

/// It does not run as root.
const USER: &str = "postgres";

/// A server with what `pgbench` needs, killed when it goes out of scope.
pub(super) struct Postgres {
    _server: Running,
    dir: TempDir,
}

impl Postgres {
    pub(super) fn start() -> Self {
        // Where another user may go.
        let dir = TempDir::with_prefix("everflame-postgres-").unwrap();
        let owned = Command::new("chown").arg(USER).arg(dir.path()).status().unwrap();
        assert!(owned.success(), "there is no user {USER} (`cargo xtask setup --tests` makes one)");
        let data = dir.path().join("data");
        let run = |mut command: Command| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let mut initdb = as_user("initdb", dir.path());
        initdb.args(["--auth", "trust", "--pgdata"]).arg(&data);
        run(initdb);
        let mut server = as_user("postgres", dir.path());
        server.args(["-c", "listen_addresses=", "-c", "fsync=on", "-k"]).arg(dir.path());
        server.arg("-D").arg(&data);
        let postgres = Self { _server: Running::start(&mut server), dir };
        wait_for("postgresql answers", || {
            let mut command = as_user("pg_isready", postgres.dir.path());
            command.arg("-h").arg(postgres.dir.path()).output().unwrap().status.success()
        });
        run(postgres.pgbench(&["--initialize", "--scale", "4", "--quiet"]));
        postgres
    }

    /// Transactions of four clients for so many seconds.
    pub(super) fn bench(&self, seconds: u32) {
        let seconds = seconds.to_string();
        let output = self.pgbench(&["--client", "4", "--time", &seconds]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn pgbench(&self, arguments: &[&str]) -> Command {
        let mut command = as_user("pgbench", self.dir.path());
        command.arg("-h").arg(self.dir.path()).args(arguments).arg("postgres");
        command
    }
}

/// A program of the newest version that is installed, run by the server's user.
fn as_user(program: &str, dir: &Path) -> Command {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    versions.sort();
    let none = || panic!("no postgresql (`cargo xtask setup --tests` installs it)");
    let newest = versions.last().unwrap_or_else(none);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--"]);
    command.arg(newest.join("bin").join(program)).current_dir(dir);
    command
}
