//! How long it takes to compare two versions: an hour of each on twenty hosts, in windows of ten seconds, one process
//! with a busy core on each host.
//!
//! `cargo bench -p everflame-server --bench compare`. The collector has just started; the first answer and the
//! median of the following ones are printed.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops at the first surprise"
)]

#[path = "../tests/harness/mod.rs"]
mod harness;
#[path = "ingest/workload.rs"]
#[allow(dead_code, reason = "the other bench uses the rest")]
mod workload;

use std::time::{Duration, Instant};

use everflame_compare::Comparison;
use everflame_profile::Kind;
use everflame_proto::v1::{CompareRequest, deploys_client::DeploysClient};
use everflame_server::store::{
    EmbeddedStore, SeriesKey, Store as _, ValidBatch, ValidProfile, embedded::EmbeddedOptions,
};
use harness::{Server, batches::now_unix_ns};
use workload::Random;

const HOSTS: u64 = 20;
const WINDOWS: u64 = 360;
const WINDOW_NS: u64 = 10_000_000_000;
/// Distinct stacks of a window, with one to four samples each: 190 samples.
const STACKS: u64 = 76;
const ROUNDS: usize = 11;

fn profile(host: u64, version: &str, start_unix_ns: u64, random: &mut Random) -> ValidProfile {
    let label = |name: &str, value: String| (name.to_owned(), value);
    let labels = vec![
        label("host", format!("web-{host}")),
        label("pid", format!("{}", 1_000 + host)),
        label("service", "checkout".to_owned()),
        label("version", version.to_owned()),
    ];
    ValidProfile {
        series: SeriesKey { kind: Kind::Cpu, labels },
        start_unix_ns,
        duration_ns: WINDOW_NS,
        samples: STACKS,
        pprof_gz: workload::profile(random, 1, STACKS).into(),
    }
}

fn fill(store: &EmbeddedStore) {
    let begin = u64::try_from(now_unix_ns()).unwrap() - 2 * WINDOWS * WINDOW_NS;
    let mut random = Random::new(1);
    for (number, version) in [(0, "v41"), (1, "v42")] {
        for window in 0..WINDOWS {
            let start_unix_ns = begin + (number * WINDOWS + window) * WINDOW_NS;
            let batches: Vec<ValidBatch> = (0..HOSTS)
                .map(|host| ValidBatch {
                    id: *uuid::Uuid::now_v7().as_bytes(),
                    profiles: vec![profile(host, version, start_unix_ns, &mut random)],
                })
                .collect();
            store.commit(&batches).unwrap();
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        retention: Duration::from_secs(7 * 24 * 3_600),
        max_disk_bytes: u64::MAX,
        min_free_bytes: 0,
        cache_bytes: 64 << 20,
    };
    let store = EmbeddedStore::open(dir.path(), options).unwrap();
    fill(&store);
    drop(store);
    let server = Server::start(dir.path());
    let mut client = DeploysClient::new(server.channel().await).max_decoding_message_size(64 << 20);
    let mut times = Vec::new();
    let mut comparison = None;
    for _ in 0..ROUNDS {
        let request =
            CompareRequest { service: "checkout".to_owned(), ..CompareRequest::default() };
        let begin = Instant::now();
        let answer = client.compare(request).await.unwrap().into_inner();
        times.push(begin.elapsed().as_secs_f64());
        comparison = Some(serde_json::from_slice::<Comparison>(&answer.comparison_json).unwrap());
    }
    let comparison = comparison.unwrap();
    println!("compare.profiles {}", comparison.base.profiles + comparison.compare.profiles);
    println!(
        "compare.functions {}",
        comparison.report.functions.len() + comparison.report.untested
    );
    println!("compare.hosts {}", comparison.report.basis.base.replicates);
    println!("compare.first_answer {:.3} s", times.remove(0));
    times.sort_by(f64::total_cmp);
    println!(
        "compare.answer {:.3} s (target: at most 1; slowest {:.3})",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}
