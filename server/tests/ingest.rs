//! What senders are told, and what of it is stored.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod harness;

use std::{io::Write as _, time::Duration};

use everflame_proto::v1::{self, BatchAck, Outcome};
use flate2::{Compression, write::GzEncoder};
use harness::{
    Server,
    batches::{self, batch, cpu_profile, record, simple},
    everything,
};
use tonic::Code;

async fn total_samples(server: &Server, selector: &str) -> i64 {
    let mut selection = everything("cpu", selector).unwrap();
    selection.sample_type = "samples".to_owned();
    let request = v1::TopRequest { selection: Some(selection), limit: 0 };
    match server.query().await.top(request).await {
        Ok(answer) => answer.into_inner().total_value,
        Err(status) if status.code() == Code::NotFound => 0,
        Err(status) => panic!("{status}"),
    }
}

fn gzip(bytes: impl Iterator<Item = [u8; 4096]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for block in bytes {
        encoder.write_all(&block).unwrap();
    }
    encoder.finish().unwrap()
}

#[track_caller]
fn check_rejected(ack: &BatchAck, message: &str) {
    assert_eq!(ack.outcome(), Outcome::Rejected, "{ack:?}");
    assert!(ack.message.contains(message), "{ack:?}");
}

#[tokio::test]
async fn stored_batch_can_be_queried_with_its_host() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let sent = simple("host-a", "api", 42);
    let ack = server.push(sent.clone()).await.unwrap();
    assert_eq!((ack.outcome(), ack.batch_id), (Outcome::Stored, sent.batch_id));
    assert_eq!(total_samples(&server, r#"{host="host-a",service="api"}"#).await, 42);
    assert_eq!(total_samples(&server, r#"{host="host-b"}"#).await, 0);
}

#[tokio::test]
async fn same_batch_id_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let sent = simple("host-a", "api", 42);
    let mut push = server.push_stream().await;
    assert_eq!(push.send(sent.clone()).await.unwrap().outcome(), Outcome::Stored);
    assert_eq!(push.send(sent.clone()).await.unwrap().outcome(), Outcome::Duplicate);
    drop(push);
    assert_eq!(server.stop().await.code(), Some(0));
    let server = Server::start(dir.path());
    assert_eq!(server.push(sent).await.unwrap().outcome(), Outcome::Duplicate);
    assert_eq!(total_samples(&server, "").await, 42);
    assert_eq!(server.metric("everflame_server_batches_total{outcome=\"duplicate\"}").await, 1.0);
}

#[tokio::test]
async fn batches_of_a_stream_are_acknowledged_each_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let mut push = server.push_stream().await;
    let sent: Vec<_> = (1..=100).map(|n| simple("host-a", "api", n)).collect();
    let mut waiting: Vec<_> = sent.iter().map(|batch| batch.batch_id.clone()).collect();
    for chunk in sent.chunks(20) {
        for batch in chunk {
            assert!(push.put(batch.clone()).await);
        }
        for _ in chunk {
            let ack = push.answer().await.unwrap();
            assert_eq!(ack.outcome(), Outcome::Stored);
            waiting.retain(|id| *id != ack.batch_id);
        }
    }
    assert!(waiting.is_empty());
    assert_eq!(total_samples(&server, "").await, 5050);
}

#[tokio::test]
async fn bad_profiles_are_named_and_the_rest_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--max-profile-decompressed-bytes", "1MiB"]);
    let good = || cpu_profile(&[(&["work", "main"], 1)]);
    let bomb = gzip((0..16_384).map(|_| [0; 4096]));
    assert!(bomb.len() < 100_000, "the bomb is {} bytes", bomb.len());
    let truncated = good()[..good().len() / 2].to_vec();
    let wrong_index = {
        let mut profile = everflame_profile::decode(&good(), &Default::default()).unwrap();
        profile.sample[0].location_id[0] = 999;
        everflame_profile::encode_gz(&profile)
    };
    let long = "x".repeat(2_000);
    let records = vec![
        record("cpu", &[("service", "api")], good()),
        record("cpu", &[], bomb),
        record("cpu", &[], b"not a profile".to_vec()),
        record("cpu", &[], truncated),
        record("cpu", &[], wrong_index),
        record("heap", &[], good()),
        record("offcpu", &[], good()),
        record("cpu", &[("a-b", "c")], good()),
        record("cpu", &[("service", long.as_str())], good()),
        record("cpu", &[], Vec::new()),
        record("cpu", &[("service", "web")], good()),
    ];
    let ack = server.push(batch("host-a", records)).await.unwrap();
    assert_eq!(ack.outcome(), Outcome::Stored, "{ack:?}");
    let expected = [
        (1, "decompressed"),
        (2, "not a pprof profile"),
        (3, "damaged or cut off"),
        (4, "not a valid pprof profile"),
        (5, "unknown profile kind `heap`"),
        (6, "has sample types"),
        (7, "does not match"),
        (8, "longer than 1024"),
        (9, "empty"),
    ];
    assert_eq!(ack.rejected.len(), expected.len(), "{ack:?}");
    for (rejected, (index, reason)) in ack.rejected.iter().zip(expected) {
        assert_eq!(rejected.index, index);
        assert!(rejected.reason.contains(reason), "{rejected:?} should say {reason}");
    }
    assert_eq!(total_samples(&server, "").await, 2);
    let malformed = "everflame_server_profiles_rejected_total{reason=\"malformed\"}";
    assert_eq!(server.metric(malformed).await, 4.0);
}

#[tokio::test]
async fn batches_that_can_never_be_taken_are_rejected_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--retention", "1h"]);
    let good = || simple("host-a", "api", 1);
    let mut push = server.push_stream().await;

    let bad_id = v1::Batch { batch_id: vec![1; 15], ..good() };
    check_rejected(&push.send(bad_id).await.unwrap(), "15 bytes");
    let no_host = v1::Batch { host: String::new(), ..good() };
    check_rejected(&push.send(no_host).await.unwrap(), "host is empty");
    let negative = v1::Batch { duration_ns: -1, ..good() };
    check_rejected(&push.send(negative).await.unwrap(), "negative");
    let before_1970 = v1::Batch { start_unix_ns: -1, ..good() };
    check_rejected(&push.send(before_1970).await.unwrap(), "before 1970");
    let old = batches::now_unix_ns() - 2 * 3_600 * batches::SECOND_NS;
    let old = v1::Batch { start_unix_ns: old, ..good() };
    check_rejected(&push.send(old).await.unwrap(), "longer than profiles are kept");
    let nothing_valid = batch("host-a", vec![record("cpu", &[], vec![1, 2, 3])]);
    let ack = push.send(nothing_valid).await.unwrap();
    check_rejected(&ack, "none of the 1 profiles");
    assert_eq!(ack.rejected.len(), 1);
    let empty = batch("host-a", Vec::new());
    check_rejected(&push.send(empty).await.unwrap(), "none of the 0 profiles");

    // The stream is as good as before.
    assert_eq!(push.send(good()).await.unwrap().outcome(), Outcome::Stored);
    assert_eq!(total_samples(&server, "").await, 1);
}

#[tokio::test]
async fn window_from_the_future_is_moved_to_now_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let tomorrow = batches::now_unix_ns() + 86_400 * batches::SECOND_NS;
    let batch = v1::Batch { start_unix_ns: tomorrow, ..simple("host-a", "api", 7) };
    assert_eq!(server.push(batch).await.unwrap().outcome(), Outcome::Stored);
    let request = v1::SeriesRequest { selection: everything("cpu", "") };
    let series = server.query().await.series(request).await.unwrap().into_inner().series;
    assert!(series[0].last_unix_ns <= batches::now_unix_ns(), "{series:?}");
    assert_eq!(server.metric("everflame_server_batches_clock_ahead_total").await, 1.0);
}

#[tokio::test]
async fn too_large_message_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--max-batch-bytes", "64KiB"]);
    let large = batches::bulky("host-a", "api", 1, 256 << 10);
    let status = server.push(large).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(server.push(simple("host-a", "api", 1)).await.unwrap().outcome(), Outcome::Stored);
}

#[tokio::test]
async fn full_queue_asks_to_slow_down_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--max-queue-bytes", "1"]);
    // With room for one batch at a time, some of these have to be asked to wait.
    let mut push = server.push_stream().await;
    let mut left: Vec<_> = (0..64).map(|_| simple("host-a", "api", 1)).collect();
    let mut retried = 0;
    while !left.is_empty() {
        let chunk: Vec<_> = left.iter().take(16).cloned().collect();
        for batch in &chunk {
            assert!(push.put(batch.clone()).await);
        }
        for _ in &chunk {
            let ack = push.answer().await.unwrap();
            match ack.outcome() {
                Outcome::Stored => left.retain(|batch| batch.batch_id != ack.batch_id),
                Outcome::Retry => {
                    assert!(ack.retry_after_ms > 0);
                    retried += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(retried > 0, "the queue was never full");
    assert_eq!(total_samples(&server, "").await, 64);
}
