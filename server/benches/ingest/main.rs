//! What a collector process takes: batches acknowledged per second, how long an
//! acknowledgement takes, and what a sample costs on disk.
//!
//! First some seconds of batches at a steady, low rate, which tell what an
//! acknowledgement takes; then as many as the collector takes, where each batch
//! mostly waits for others.
//!
//! `cargo bench -p everflame-server --bench ingest`. Sender and collector share the
//! machine. EVERFLAME_BENCH_SECONDS and EVERFLAME_BENCH_STREAMS change the defaults.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at the first surprise"
)]

#[path = "../../tests/harness/mod.rs"]
mod harness;
mod workload;

use std::{
    env, fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use everflame_proto::v1::{Batch, Outcome, ProfileRecord};
use everflame_server::store::{EmbeddedStore, embedded::EmbeddedOptions};
use harness::{Push, Server, batches};
use tonic::transport::Channel;
use workload::{PROFILES_PER_BATCH, Random, SAMPLES_PER_PROFILE};

const DEFAULT_SECONDS: usize = 15;
const DEFAULT_STREAMS: usize = 4;
/// Batches of one stream that wait for their acknowledgement at a time.
const IN_FLIGHT: usize = 4;
/// The first phase: one stream, one batch at a time, at this rate.
const PACED: Duration = Duration::from_secs(5);
const PACED_INTERVAL: Duration = Duration::from_millis(100);
/// Different batches; each is sent again and again as another window.
const DISTINCT_BATCHES: u64 = 64;
const STORED_OPTIONS: EmbeddedOptions = EmbeddedOptions {
    retention: Duration::from_secs(7 * 24 * 3_600),
    max_disk_bytes: u64::MAX,
    min_free_bytes: 0,
    cache_bytes: 64 << 20,
};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let seconds = setting("EVERFLAME_BENCH_SECONDS", DEFAULT_SECONDS);
    let streams = setting("EVERFLAME_BENCH_STREAMS", DEFAULT_STREAMS);
    let dir = tempfile::tempdir().unwrap();
    let hosts: Arc<Vec<Vec<ProfileRecord>>> = Arc::new(
        (0..DISTINCT_BATCHES)
            .map(|host| workload::records(&mut Random::new(host + 1), host))
            .collect(),
    );
    let sent_bytes: usize = hosts.iter().flatten().map(|record| record.pprof_gz.len()).sum();
    let per_batch = sent_bytes as f64 / DISTINCT_BATCHES as f64;

    let server = Server::start(dir.path());
    let channel = server.channel().await;
    let deadline = Instant::now() + PACED;
    let paced = send(
        channel,
        Load { interval: PACED_INTERVAL, in_flight: 1, deadline, ..load(0, 1) },
        &hosts,
    );
    let mut paced = paced.await;
    paced.sort_unstable();
    let cpu_before = server.metric("process_cpu_seconds_total").await;
    let begin = Instant::now();
    let deadline = begin + Duration::from_secs(seconds as u64);
    let mut senders = Vec::new();
    for stream in 0..streams {
        let channel = server.channel().await;
        let hosts = Arc::clone(&hosts);
        let load = Load { deadline, ..load(stream, streams) };
        senders.push(tokio::spawn(async move { send(channel, load, &hosts).await }));
    }
    let mut latencies = Vec::new();
    for sender in senders {
        latencies.extend(sender.await.unwrap());
    }
    let elapsed = begin.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let batches = latencies.len() as f64;
    let cpu = server.metric("process_cpu_seconds_total").await - cpu_before;
    let peak_rss = peak_rss_bytes(server.pid());
    let journal = server.metric("everflame_server_journal_bytes").await;
    assert_eq!(server.stop().await.code(), Some(0));

    let store = EmbeddedStore::open(dir.path(), STORED_OPTIONS).unwrap();
    store.compact().unwrap();
    drop(store);
    let disk = occupied_bytes(&dir.path().join("store/keyspaces")) as f64;
    let per_batch_samples = (PROFILES_PER_BATCH * SAMPLES_PER_PROFILE) as f64;
    let samples = batches * per_batch_samples;
    let all_samples = samples + paced.len() as f64 * per_batch_samples;

    print("streams", streams as f64, "");
    print("batches", batches, "");
    print("profiles_per_batch", PROFILES_PER_BATCH as f64, "");
    print("samples_per_profile", SAMPLES_PER_PROFILE as f64, "");
    print("batch_compressed", per_batch / 1024.0, "KiB");
    print("acknowledged", batches / elapsed, "batches/s");
    print("acknowledged_samples", samples / elapsed, "samples/s");
    print("acknowledged_bytes", batches * per_batch / elapsed / 1e6, "MB/s");
    print("ack_latency_paced_p50", millis(&paced, 0.5), "ms");
    print("ack_latency_paced_p99", millis(&paced, 0.99), "ms");
    print("ack_latency_p50", millis(&latencies, 0.5), "ms");
    print("ack_latency_p99", millis(&latencies, 0.99), "ms");
    print("sent_per_sample", per_batch / per_batch_samples, "bytes");
    print("disk_per_sample", disk / all_samples, "bytes");
    print("journal_at_end", journal / 1e6, "MB");
    print("server_cpu_per_batch", cpu / batches * 1e3, "ms");
    print("server_cpu_per_sample", cpu / samples * 1e6, "us");
    print("server_peak_rss", peak_rss as f64 / 1e6, "MB");
}

/// What one stream sends.
struct Load {
    /// Of so many streams, this one: they share the hosts.
    stream: usize,
    streams: usize,
    in_flight: usize,
    /// At least this long between batches.
    interval: Duration,
    deadline: Instant,
}

fn load(stream: usize, streams: usize) -> Load {
    Load {
        stream,
        streams,
        in_flight: IN_FLIGHT,
        interval: Duration::ZERO,
        deadline: Instant::now(),
    }
}

/// Sends windows of this stream's hosts, ten seconds after each other, until the
/// deadline; how long each acknowledgement took.
async fn send(channel: Channel, load: Load, hosts: &[Vec<ProfileRecord>]) -> Vec<Duration> {
    let mut push = Push::open(channel).await.unwrap();
    let first_window = batches::now_unix_ns() - 3 * 3_600 * batches::SECOND_NS;
    let own: Vec<_> = hosts.iter().enumerate().skip(load.stream).step_by(load.streams).collect();
    let mut next = own.iter().cycle();
    let mut sent = 0;
    let mut waiting: Vec<(Vec<u8>, Instant)> = Vec::new();
    let mut latencies = Vec::new();
    loop {
        while waiting.len() < load.in_flight && Instant::now() < load.deadline {
            tokio::time::sleep(load.interval).await;
            let (host, profiles) = next.next().unwrap();
            let window = i64::try_from(sent / own.len()).unwrap();
            let batch = Batch {
                start_unix_ns: first_window + window * batches::WINDOW_NS,
                ..batches::batch(&format!("host-{host}"), profiles.to_vec())
            };
            waiting.push((batch.batch_id.clone(), Instant::now()));
            assert!(push.put(batch).await);
            sent += 1;
        }
        if waiting.is_empty() {
            return latencies;
        }
        let ack = push.answer().await.unwrap();
        assert_eq!(ack.outcome(), Outcome::Stored, "{}", ack.message);
        let index = waiting.iter().position(|(id, _)| *id == ack.batch_id).unwrap();
        latencies.push(waiting.swap_remove(index).1.elapsed());
    }
}

/// The latency that this share of the acknowledgements did not exceed.
fn millis(sorted: &[Duration], share: f64) -> f64 {
    let index = (share * (sorted.len() as f64 - 1.0)).round() as usize;
    sorted.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
}

fn setting(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn peak_rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn occupied_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;

    let metadata = fs::symlink_metadata(path).unwrap();
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    fs::read_dir(path).unwrap().map(|entry| occupied_bytes(&entry.unwrap().path())).sum::<u64>()
        + own
}

fn print(name: &str, value: f64, unit: &str) {
    println!("{name} {value:.3} {unit}");
}
