//! The folder that a demo works in: the store, the spool, the logs and the compiled
//! workload. It is new, nobody else can look into it, and it goes when the demo ends.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::{env, process};

use anyhow::{Context as _, Result, bail};

use crate::command::{as_root, ask, command, repository, run};

/// The programs of the sample workload, by their names in tests/workloads.
const WORKLOADS: [&str; 2] = ["burn", "syscalls"];

pub(super) struct Files {
    root: PathBuf,
    data_dir: PathBuf,
}

impl Files {
    pub(super) fn create(data_dir: Option<&Path>) -> Result<Self> {
        let root = new_folder()?;
        let data_dir = match data_dir {
            // The collector does not run in the folder where this was typed.
            Some(dir) => std::path::absolute(dir).context("cannot resolve --data-dir")?,
            None => root.join("data"),
        };
        Ok(Self { root, data_dir })
    }

    pub(super) fn compile_workloads(&self) -> Result<()> {
        for name in WORKLOADS {
            let source = repository().join("tests/workloads").join(name).with_extension("c");
            let mut gcc = command("gcc");
            // Without frame pointers the agent sees only the innermost frames, for now.
            gcc.args(["-O2", "-g", "-fno-omit-frame-pointer", "-pthread", "-o"]);
            run(gcc.arg(self.workload(name)).arg(source))?;
        }
        Ok(())
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn spool_dir(&self) -> PathBuf {
        self.root.join("spool")
    }

    pub(super) fn workload(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join(name).with_extension("log")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // The spool is root's when the agent ran through sudo.
        if fs::remove_dir_all(&self.root).is_err()
            && let Ok(mut remove) = as_root("rm")
        {
            ask(remove.args(["-rf", "--"]).arg(&self.root));
        }
        if self.root.exists() {
            eprintln!("[demo] cannot remove {}", self.root.display());
        }
    }
}

/// A folder that did not exist before, for us alone.
fn new_folder() -> Result<PathBuf> {
    for attempt in 0..100 {
        // A name that was left by an earlier process with our pid is passed over.
        let name = format!("everflame-demo-{}-{attempt}", process::id());
        let path = env::temp_dir().join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot create {}", path.display()));
            }
        }
    }
    bail!("cannot find a free name in {}", env::temp_dir().display())
}
