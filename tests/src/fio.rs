//! fio, which says itself how many reads it makes and how long they take.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A job.
#[derive(Debug)]
pub struct Fio {
    file: PathBuf,
    depth: u32,
    seconds: u32,
}

/// What fio says of it.
#[derive(Clone, Copy, Debug)]
pub struct Result {
    /// Reads.
    pub reads: f64,
    /// How long they took from their submission to their completion, in nanoseconds, in the mean.
    pub latency_ns: f64,
    /// The same with what it takes to submit them.
    pub whole_latency_ns: f64,
    seconds: f64,
}

impl Result {
    /// Reads in a second.
    pub fn per_second(&self) -> f64 {
        self.reads / self.seconds
    }
}

impl Fio {
    /// Reads of 4 KiB at random places of a file in `dir`, past the page cache, so many at a time.
    pub fn random_reads(dir: &Path, depth: u32, seconds: u32) -> Self {
        let file = dir.join("fio.data");
        if !file.exists() {
            let status = Command::new("dd")
                .args(["if=/dev/urandom", "bs=1M", "count=256", "conv=fsync", "status=none"])
                .arg(format!("of={}", file.display()))
                .status();
            assert!(status.expect("dd").success(), "there is no room for {}", file.display());
        }
        Self { file, depth, seconds }
    }

    /// As it is started.
    pub fn command(&self) -> Vec<String> {
        let mut command = ["fio", "--name=job", "--rw=randread", "--bs=4k", "--direct=1"]
            .map(str::to_owned)
            .to_vec();
        command.extend([
            format!("--runtime={}", self.seconds),
            "--time_based".to_owned(),
            "--thread".to_owned(),
            "--output-format=json".to_owned(),
            // How long a read takes does not include then that it is submitted.
            "--ioengine=libaio".to_owned(),
            format!("--iodepth={}", self.depth),
            format!("--filename={}", self.file.display()),
        ]);
        command
    }

    /// Runs it.
    pub fn run(&self) -> Result {
        let command = self.command();
        let output = Command::new(&command[0]).args(&command[1..]).output();
        let output = output.unwrap_or_else(|error| {
            panic!("cannot start fio (`cargo xtask setup --tests` installs it): {error}")
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.read_result(&String::from_utf8_lossy(&output.stdout))
    }

    /// What it has printed.
    pub fn read_result(&self, text: &str) -> Result {
        // Notes may come before.
        let json = text.find('{').map(|at| &text[at..]).unwrap_or_default();
        let job: serde_json::Value = serde_json::from_str(json).expect("fio prints JSON");
        let read = &job["jobs"][0]["read"];
        let number = |value: &serde_json::Value| value.as_f64().expect("fio prints numbers");
        Result {
            reads: number(&read["total_ios"]),
            latency_ns: number(&read["clat_ns"]["mean"]),
            whole_latency_ns: number(&read["lat_ns"]["mean"]),
            seconds: number(&read["runtime"]) / 1000.0,
        }
    }
}
