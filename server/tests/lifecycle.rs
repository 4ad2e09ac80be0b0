//! Starting, stopping, and what operators see.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod harness;

use harness::{
    Server,
    batches::{self, simple},
    eventually, http, run_to_end,
};

#[tokio::test]
async fn second_server_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = Server::start(dir.path());
    let (code, stderr) = run_to_end(dir.path(), &[]);
    assert_eq!(code, 75, "{stderr}");
    assert!(stderr.contains("another everflame-server uses the data directory"), "{stderr}");
    assert!(stderr.contains(dir.path().to_str().unwrap()), "{stderr}");
    // The first one is not disturbed, and its death frees the directory.
    first.push(simple("host-a", "api", 1)).await.unwrap();
    first.kill();
    Server::start(dir.path());
}

#[tokio::test]
async fn damaged_journal_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    for samples in 1..10 {
        server.push(batches::bulky("host-a", "api", samples, 20_000)).await.unwrap();
    }
    server.kill();
    let journal = dir.path().join("store/0.jnl");
    let mut bytes = std::fs::read(&journal).unwrap();
    // Batches that were acknowledged come after this one; starting without them would
    // lose them without a word.
    let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 2;
    bytes[middle] = !bytes[middle];
    std::fs::write(&journal, bytes).unwrap();
    let (code, stderr) = run_to_end(dir.path(), &[]);
    assert_eq!(code, 74, "{stderr}");
    assert!(stderr.contains("is damaged") && stderr.contains("backup"), "{stderr}");
}

#[tokio::test]
async fn taken_address_is_refused() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(first.path());
    let address = server.address.to_string();
    let (code, stderr) = run_to_end(second.path(), &["--listen", &address]);
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains(&address) && stderr.contains("--listen"), "{stderr}");
}

#[tokio::test]
async fn stop_ends_streams_and_exits_with_success() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let mut push = server.push_stream().await;
    push.send(simple("host-a", "api", 1)).await.unwrap();
    let stopped = tokio::spawn(server.stop());
    let status = push.answer().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    drop(push);
    assert_eq!(stopped.await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn old_profiles_are_deleted_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let five_hours_ago = batches::now_unix_ns() - 5 * 3_600 * batches::SECOND_NS;
    let old = everflame_proto::v1::Batch {
        start_unix_ns: five_hours_ago,
        ..simple("host-old", "api", 1)
    };
    server.push(old).await.unwrap();
    server.push(simple("host-new", "api", 1)).await.unwrap();
    let hosts = async |server: &Server| {
        http::get(server.address, "/api/v1/label/host/values?from=0").await.json()["values"].clone()
    };
    assert_eq!(hosts(&server).await, serde_json::json!(["host-new", "host-old"]));
    server.stop().await;
    let server = Server::start_with(dir.path(), &["--retention", "2h"]);
    eventually("the old profile is deleted", || async {
        hosts(&server).await == serde_json::json!(["host-new"])
    })
    .await;
    let deleted = "everflame_server_partitions_deleted_total{cause=\"age\"}";
    assert_eq!(server.metric(deleted).await, 1.0);
}

#[tokio::test]
async fn operators_see_health_metrics_and_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let health = http::get(server.address, "/healthz").await;
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));
    assert!(http::get(server.address, "/").await.text().contains("/api/v1/top"));
    server.push(simple("host-a", "api", 1)).await.unwrap();
    http::get(server.address, "/api/v1/top").await;
    for (name, at_least) in [
        ("everflame_server_batches_total{outcome=\"stored\"}", 1.0),
        ("everflame_server_profiles_stored_total", 1.0),
        ("everflame_server_samples_stored_total", 1.0),
        ("everflame_server_stored_bytes_total", 100.0),
        ("everflame_server_commit_seconds_count", 1.0),
        ("everflame_server_queries_total{route=\"top\",result=\"ok\"}", 1.0),
        ("everflame_server_disk_free_bytes", 1.0),
        ("everflame_server_data_bytes", 100.0),
        ("process_resident_memory_bytes", 1e6),
    ] {
        let value = server.metric(name).await;
        assert!(value >= at_least, "{name} is {value}");
    }
    assert_eq!(server.metric("everflame_server_queue_batches").await, 0.0);
}

#[tokio::test]
async fn own_profile_is_a_cpu_profile() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let answer = http::get(server.address, "/debug/pprof/profile?seconds=1").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let profile = everflame_profile::decode(&answer.body, &Default::default()).unwrap();
    assert_eq!(everflame_profile::sample_type_index(&profile, None), Ok(1));
    assert_eq!(http::get(server.address, "/debug/pprof/profile?seconds=0").await.status, 400);
}

#[test]
fn wrong_usage_is_refused_with_the_usual_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stderr) = run_to_end(dir.path(), &["--retention", "soon"]);
    assert_eq!(code, 64, "{stderr}");
    assert!(stderr.contains("write numbers with ms, s, m, h, d or w"), "{stderr}");
}
