//! Whether the time in the queue and at the disk is what fio says that a read takes, one read at a time.

use everflame_tests::bench::print;
use everflame_tests::cost::median;
use everflame_tests::fio::Fio;
use everflame_tests::profile::read;
use everflame_tests::program::everflame;
use tempfile::TempDir;

const SECONDS: u32 = 3;

/// Each is some ten thousand reads.
const MAX_ROUNDS: usize = 5;

pub(crate) fn run(rounds: usize) {
    let rounds = rounds.min(MAX_ROUNDS);
    eprintln!("{rounds} recordings of fio, one read at a time ...");
    let fio = Fio::random_reads(env!("CARGO_TARGET_TMPDIR").as_ref(), 1, SECONDS);
    let (mut errors, mut lengths) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let dir = TempDir::new().unwrap();
        let (profile, result) = (dir.path().join("block.pb.gz"), dir.path().join("fio.json"));
        let mut command = everflame();
        command.args(["record", "--kind", "block", "-o"]).arg(&profile).arg("--");
        command.args(fio.command()).arg(format!("--output={}", result.display()));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (_, samples) = read(&profile);
        let sum = |value: usize| -> f64 {
            let requests = samples.iter().filter(|sample| sample.label("event") == "request");
            requests.map(|sample| sample.values[value] as f64).sum()
        };
        let seen_ns = (sum(2) + sum(3)) / sum(0);
        let latency_ns = fio.read_result(&std::fs::read_to_string(&result).unwrap()).latency_ns;
        errors.push(100.0 * (seen_ns / latency_ns - 1.0));
        lengths.push(latency_ns / 1000.0);
    }
    print("latency", "by_fio", median(&mut lengths), "us a read");
    print("latency", "error", median(&mut errors), "% (target: at most 5 either way)");
}
