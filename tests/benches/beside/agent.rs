//! An agent with nothing but some kinds of profile.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use everflame_tests::cost::cpu_seconds;
use everflame_tests::program::{Running, binary, unwind_cache_dir};
use tempfile::TempDir;

use super::hooks::{Followed, HookPrograms};

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// It is at rest when it takes less than a hundredth of this.
const LOOK: Duration = Duration::from_millis(200);

/// Its profiles stay in its spool: a collector on the same host would be measured with it.
pub(crate) struct KindAgent {
    pub(crate) process: Running,
    pub(crate) programs: HookPrograms,
    _spool: TempDir,
}

impl KindAgent {
    /// Starts one, and waits until it has looked at everything that runs already.
    pub(crate) fn start(followed: Followed, arguments: &[&str]) -> Self {
        let spool = TempDir::new().unwrap();
        let mut command = Command::new(binary("everflame-agent"));
        command
            .args(["--kinds", followed.kinds, "--metrics", "off", "--spool-dir"])
            .arg(spool.path())
            .arg("--unwind-cache-dir")
            .arg(unwind_cache_dir())
            .args(arguments)
            .stdout(Stdio::null());
        let process = Running::start(&mut command);
        let deadline = Instant::now() + PATIENCE;
        let wait = |what: &str, duration: Duration| {
            assert!(Instant::now() < deadline, "the agent {what}; it said:\n{}", process.log());
            std::thread::sleep(duration);
        };
        let programs = loop {
            if let Some(programs) = HookPrograms::of(process.pid(), followed) {
                break programs;
            }
            wait("does not start", Duration::from_millis(20));
        };
        loop {
            let before = cpu_seconds(process.pid());
            wait("does not come to rest", LOOK);
            if cpu_seconds(process.pid()) - before < LOOK.as_secs_f64() / 100.0 {
                break;
            }
        }
        Self { process, programs, _spool: spool }
    }
}
