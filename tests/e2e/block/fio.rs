//! fio, which says itself how long its reads take.

use std::path::PathBuf;
use std::process::Command;

use everflame_tests::program::scratch_dir;

/// A job.
pub(super) struct Fio {
    file: PathBuf,
    depth: u32,
}

impl Fio {
    /// Reads of 4 KiB at random places of a file, past the page cache, so many at a time.
    pub(super) fn random_reads(depth: u32) -> Self {
        let file = scratch_dir().join("fio.data");
        if !file.exists() {
            let status = Command::new("dd")
                .args(["if=/dev/urandom", "bs=1M", "count=256", "conv=fsync", "status=none"])
                .arg(format!("of={}", file.display()))
                .status();
            assert!(status.unwrap().success());
        }
        Self { file, depth }
    }

    /// As it is started.
    pub(super) fn command(&self) -> Vec<String> {
        let mut command = ["fio", "--name=job", "--rw=randread", "--bs=4k", "--direct=1"]
            .map(str::to_owned)
            .to_vec();
        command.extend([
            "--runtime=4".to_owned(),
            "--time_based".to_owned(),
            "--thread".to_owned(),
            "--output-format=json".to_owned(),
            "--ioengine=libaio".to_owned(),
            format!("--iodepth={}", self.depth),
            format!("--filename={}", self.file.display()),
        ]);
        command
    }

    /// Runs it; what it prints.
    pub(super) fn run(&self) -> String {
        let command = self.command();
        let output = Command::new(&command[0]).args(&command[1..]).output().unwrap_or_else(|error| {
            panic!("cannot start fio (`cargo xtask setup --tests` installs it): {error}")
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// How long a read took, from its submission to its completion, by what it has printed.
    pub(super) fn mean_latency_ns(output: &str) -> f64 {
        // Notes may come before.
        let json = &output[output.find('{').unwrap()..];
        let result: serde_json::Value = serde_json::from_str(json).unwrap();
        result["jobs"][0]["read"]["clat_ns"]["mean"].as_f64().unwrap()
    }
}
