//! Export against a collector on a real socket that misbehaves on demand.
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of a test fail as the test does")]

mod export_collector;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use everflame_agent::export::{ExportConfig, Exporter};
use everflame_agent::health::Health;
use everflame_agent::metrics::{CodeLabels, Metrics, OutcomeLabels, ReasonLabels};
use everflame_proto::v1::{Batch, Outcome, ProfileRecord};
use export_collector::{Answer, Collector, Record};
use tonic::Code;

/// How long a test waits for what must happen, before it fails.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

struct Agent {
    exporter: Exporter,
    metrics: Arc<Metrics>,
}

impl Agent {
    fn start(server: &str, spool: &Path) -> Self {
        Self::start_with(server, spool, |_| {})
    }

    fn start_with(server: &str, spool: &Path, change: impl FnOnce(&mut ExportConfig)) -> Self {
        let mut config = ExportConfig::new(Some(server.into()), spool.into());
        config.backoff = (Duration::from_millis(1), Duration::from_millis(20));
        change(&mut config);
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(Health::new(PATIENCE));
        let exporter = Exporter::spawn(config, Arc::clone(&metrics), health, None)
            .expect("export starts, whatever the collector does");
        Self { exporter, metrics }
    }

    /// Submits batches whose hosts are these numbers.
    fn submit(&self, numbers: impl IntoIterator<Item = usize>) {
        numbers.into_iter().for_each(|number| self.exporter.submit(batch(number)));
    }

    fn wait_until_delivered(&self) {
        wait_until("everything is delivered", || self.exporter.spool().is_empty());
    }

    fn outcomes(&self, outcome: &'static str) -> u64 {
        self.metrics.export_batches.get_or_create(&OutcomeLabels { outcome }).get()
    }

    fn failures(&self, code: &'static str) -> u64 {
        self.metrics.export_stream_failures.get_or_create(&CodeLabels { code }).get()
    }
}

fn batch(number: usize) -> Batch {
    Batch {
        host: number.to_string(),
        profiles: vec![ProfileRecord { kind: "cpu".into(), ..ProfileRecord::default() }],
        ..Batch::default()
    }
}

fn hosts(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|number| number.to_string()).collect()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let steps = PATIENCE.as_millis() / 2;
    for _ in 0..steps {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("gave up waiting until {what}");
}

/// An address at which nothing listens.
fn closed_address() -> std::net::SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("a port")
}

fn spool_dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn batches_arrive_once_and_in_order() {
    let (record, dir) = (Record::default(), spool_dir());
    let collector = Collector::start(&record, |_, _| Answer::STORED);
    let agent = Agent::start(&collector.url(), dir.path());
    agent.submit(0..50);
    agent.wait_until_delivered();
    assert_eq!(record.settled(), hosts(0..50));
    assert_eq!(record.arrivals().len(), 50);
    assert_eq!(agent.outcomes("stored"), 50);
    assert_eq!(agent.metrics.export_retries.get(), 0);
    assert_eq!(agent.exporter.shutdown(PATIENCE), 0);
}

#[test]
fn several_batches_are_in_flight_at_a_time() {
    let (record, dir) = (Record::default(), spool_dir());
    // Nothing is answered before four have arrived, so one at a time would never end.
    let collector = Collector::start(&record, |_, before| {
        if before.len() % 4 == 3 { Answer::STORED } else { Answer::Hold }
    });
    let agent = Agent::start_with(&collector.url(), dir.path(), |c| c.max_in_flight = 4);
    agent.submit(0..16);
    agent.wait_until_delivered();
    assert_eq!(record.settled(), hosts(0..16));
}

#[test]
fn a_collector_that_is_not_there_yet_is_waited_for() {
    let (record, dir) = (Record::default(), spool_dir());
    let address = closed_address();
    let agent = Agent::start(&format!("http://{address}"), dir.path());
    agent.submit(0..5);
    wait_until("some attempts have failed", || agent.failures("unreachable") >= 3);
    assert_eq!(agent.exporter.spool().len(), 5);
    let _collector = Collector::start_at(address, &record, |_, _| Answer::STORED);
    agent.wait_until_delivered();
    assert_eq!(record.settled(), hosts(0..5));
}

#[test]
fn nothing_is_lost_when_the_collector_is_killed_again_and_again() {
    let (record, dir) = (Record::default(), spool_dir());
    let mut collector = Collector::start(&record, |_, _| Answer::STORED);
    let address = collector.address;
    let agent = Agent::start(&collector.url(), dir.path());
    for round in 0..10 {
        agent.submit(round * 20..(round + 1) * 20);
        wait_until("some of the round arrived", || record.settled().len() > round * 10);
        drop(collector);
        collector = Collector::start_at(address, &record, |_, _| Answer::STORED);
    }
    agent.wait_until_delivered();
    // An acknowledgement can be lost with the connection, so a batch may arrive twice,
    // under the same id.
    let (hosts_seen, ids): (BTreeSet<_>, BTreeSet<_>) =
        record.arrivals().into_iter().map(|a| (a.host, a.batch_id)).unzip();
    assert_eq!(hosts_seen, hosts(0..200).into_iter().collect());
    assert_eq!(ids.len(), 200);
}

#[test]
fn what_was_acknowledged_before_a_stream_failed_is_not_sent_again() {
    for end in [Answer::Fail(Code::Unavailable), Answer::Close] {
        let (record, dir) = (Record::default(), spool_dir());
        // Every seventh arrival ends the stream instead of being answered.
        let collector = Collector::start(&record, move |_, before| {
            if before.len() % 7 == 6 { end.clone() } else { Answer::STORED }
        });
        let agent = Agent::start(&collector.url(), dir.path());
        agent.submit(0..40);
        agent.wait_until_delivered();
        assert_eq!(record.settled(), hosts(0..40), "each is settled once, in order");
        assert!(agent.metrics.export_retries.get() > 0);
    }
}

#[test]
fn a_collector_without_room_is_retried_and_nothing_is_dropped() {
    let (record, dir) = (Record::default(), spool_dir());
    let collector = Collector::start(&record, |_, before| {
        if before.len() < 5 { Answer::Fail(Code::ResourceExhausted) } else { Answer::STORED }
    });
    let agent = Agent::start(&collector.url(), dir.path());
    agent.submit(0..3);
    agent.wait_until_delivered();
    assert_eq!(record.settled(), hosts(0..3));
    assert_eq!(agent.failures("resource_exhausted"), 5);
    assert_eq!(agent.outcomes("rejected"), 0);
}

#[test]
fn retry_means_the_same_batch_again_and_first() {
    let (record, dir) = (Record::default(), spool_dir());
    let collector = Collector::start(&record, |_, before| {
        if before.len() < 2 { Answer::Ack(Outcome::Retry, 1) } else { Answer::STORED }
    });
    let agent = Agent::start_with(&collector.url(), dir.path(), |c| c.max_in_flight = 1);
    agent.submit(0..3);
    agent.wait_until_delivered();
    let arrived: Vec<_> = record.arrivals().into_iter().map(|a| a.host).collect();
    assert_eq!(arrived, ["0", "0", "0", "1", "2"]);
    assert_eq!((agent.outcomes("retry"), agent.outcomes("stored")), (2, 3));
    assert!(record.arrivals().iter().all(|a| a.stream == 0), "the stream is kept");
}

#[test]
fn duplicates_and_rejected_batches_are_forgotten_and_counted() {
    let (record, dir) = (Record::default(), spool_dir());
    let collector = Collector::start(&record, |batch, _| match batch.host.as_str() {
        "1" => Answer::Ack(Outcome::Duplicate, 0),
        "2" => Answer::Ack(Outcome::Rejected, 0),
        _ => Answer::STORED,
    });
    let agent = Agent::start(&collector.url(), dir.path());
    agent.submit(0..4);
    agent.wait_until_delivered();
    assert_eq!(record.arrivals().len(), 4);
    let outcomes = ["stored", "duplicate", "rejected"].map(|outcome| agent.outcomes(outcome));
    assert_eq!(outcomes, [2, 1, 1]);
}

#[test]
fn a_batch_that_ends_every_stream_is_found_and_dropped_alone() {
    let (record, dir) = (Record::default(), spool_dir());
    let collector = Collector::start(&record, |batch, _| {
        if batch.host == "3" { Answer::Fail(Code::OutOfRange) } else { Answer::STORED }
    });
    let agent = Agent::start(&collector.url(), dir.path());
    agent.submit(0..10);
    agent.wait_until_delivered();
    assert_eq!(record.settled(), hosts((0..10).filter(|&number| number != 3)));
    assert_eq!(agent.outcomes("rejected"), 1);
}

#[test]
fn a_silent_collector_is_given_up_and_tried_again() {
    let (record, dir) = (Record::default(), spool_dir());
    let collector =
        Collector::start(
            &record,
            |_, before| {
                if before.is_empty() { Answer::Silence } else { Answer::STORED }
            },
        );
    let agent = Agent::start_with(&collector.url(), dir.path(), |config| {
        config.ack_timeout = Duration::from_millis(100);
        config.max_in_flight = 1;
    });
    agent.submit(0..2);
    agent.wait_until_delivered();
    assert!(agent.failures("ack_timeout") >= 1);
    assert_eq!(record.settled().len(), 2);
}

#[test]
fn the_next_agent_delivers_what_the_last_one_could_not() {
    let (record, dir) = (Record::default(), spool_dir());
    let agent = Agent::start(&format!("http://{}", closed_address()), dir.path());
    agent.submit(0..6);
    let ids = agent.exporter.spool().batch_ids();
    assert_eq!(agent.exporter.shutdown(PATIENCE), 6, "an unreachable collector is not waited for");

    let collector = Collector::start(&record, |_, _| Answer::STORED);
    let agent = Agent::start(&collector.url(), dir.path());
    agent.submit(6..8);
    agent.wait_until_delivered();
    assert_eq!(record.settled(), hosts(0..8));
    let arrived: Vec<_> = record.arrivals().into_iter().map(|a| a.batch_id).collect();
    assert!(
        ids.iter().map(|id| id.as_bytes().as_slice()).eq(arrived[..6].iter().map(|id| &id[..]))
    );
}

#[test]
fn ending_cuts_a_wait_short_for_one_last_attempt() {
    let (record, dir) = (Record::default(), spool_dir());
    let address = closed_address();
    let agent = Agent::start_with(&format!("http://{address}"), dir.path(), |config| {
        config.backoff = (HOUR, HOUR);
    });
    agent.submit(0..3);
    wait_until("an attempt failed", || agent.failures("unreachable") == 1);
    let _collector = Collector::start_at(address, &record, |_, _| Answer::STORED);
    let metrics = Arc::clone(&agent.metrics);
    assert_eq!(agent.exporter.shutdown(PATIENCE), 0);
    assert_eq!(record.settled(), hosts(0..3));
    let unreachable = CodeLabels { code: "unreachable" };
    assert_eq!(metrics.export_stream_failures.get_or_create(&unreachable).get(), 1);
}

#[test]
fn ending_does_not_wait_longer_than_it_may_for_a_silent_collector() {
    let (record, dir) = (Record::default(), spool_dir());
    let collector = Collector::start(&record, |_, _| Answer::Silence);
    let agent = Agent::start_with(&collector.url(), dir.path(), |c| c.ack_timeout = HOUR);
    agent.submit(0..2);
    wait_until("both arrived", || record.arrivals().len() == 2);
    assert_eq!(agent.exporter.shutdown(Duration::from_millis(20)), 2);
}

#[test]
fn large_batches_are_split_and_impossible_profiles_are_dropped_and_counted() {
    let (record, dir) = (Record::default(), spool_dir());
    let collector = Collector::start(&record, |_, _| Answer::STORED);
    let agent = Agent::start_with(&collector.url(), dir.path(), |c| c.max_batch_bytes = 3000);
    let profile =
        |size| ProfileRecord { pprof_gz: vec![0; size].into(), ..ProfileRecord::default() };
    let profiles = [1000, 1000, 1000, 9000, 1000].map(profile).to_vec();
    agent.exporter.submit(Batch { profiles, ..batch(0) });
    agent.wait_until_delivered();
    assert_eq!(record.settled(), ["0", "0"]);
    let too_large = ReasonLabels { reason: "too_large" };
    assert_eq!(agent.metrics.dropped_profiles.get_or_create(&too_large).get(), 1);
}

#[test]
fn without_a_collector_batches_wait_in_the_spool() {
    let dir = spool_dir();
    let config = ExportConfig::new(None, dir.path().into());
    let health = Arc::new(Health::new(PATIENCE));
    let exporter = Exporter::spawn(config, Arc::default(), health, None).expect("export starts");
    exporter.submit(batch(0));
    assert_eq!(exporter.shutdown(PATIENCE), 1);
}
