//! Which versions a collector has seen, over gRPC and HTTP, and after a crash.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod harness;

use everflame_proto::v1::{
    self, AnnounceDeployRequest, Batch, Deploy, ListDeploysRequest, deploys_client::DeploysClient,
};
use harness::{
    Server,
    batches::{batch, cpu_profile, now_unix_ns, record},
    http::get,
};
use serde_json::json;
use tonic::Code;

const MINUTE_NS: i64 = 60_000_000_000;

/// A window of the api, so many minutes ago.
fn window(host: &str, version: &str, minutes_ago: i64) -> Batch {
    let profile = cpu_profile(&[(&["work", "main"], 10)]);
    let labels = [("service", "api"), ("version", version), ("pid", "1")];
    let start_unix_ns = now_unix_ns() - minutes_ago * MINUTE_NS;
    Batch { start_unix_ns, ..batch(host, vec![record("cpu", &labels, profile)]) }
}

async fn deploys(server: &Server, service: &str) -> Vec<Deploy> {
    let mut client = DeploysClient::new(server.channel().await);
    let request = ListDeploysRequest { service: service.to_owned(), ..Default::default() };
    client.list(request).await.unwrap().into_inner().deploys
}

/// Versions and the ones before them.
fn versions(deploys: &[Deploy]) -> Vec<(&str, &str)> {
    deploys.iter().map(|d| (d.version.as_str(), d.previous_version.as_str())).collect()
}

async fn rolled_out_and_back(server: &Server) {
    for (host, version, minutes_ago) in [
        ("a", "v41", 100),
        ("b", "v41", 100),
        ("a", "v42", 90),
        ("b", "v42", 89),
        ("a", "v42", 60),
        ("a", "v41", 59),
    ] {
        server.push(window(host, version, minutes_ago)).await.unwrap();
    }
}

#[tokio::test]
async fn rollout_and_rollback_are_three_deploys() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    rolled_out_and_back(&server).await;
    let deploys = deploys(&server, "api").await;
    assert_eq!(versions(&deploys), [("v41", "v42"), ("v42", "v41"), ("v41", "")]);
    assert_eq!(deploys.iter().map(|d| d.returned).collect::<Vec<_>>(), [true, false, false]);
    let hosts: Vec<&str> = deploys[1].hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(hosts, ["a", "b"]);
    assert!(deploys[1].hosts[0].first_unix_ns < deploys[1].hosts[1].first_unix_ns);
    assert!(self::deploys(&server, "web").await.is_empty());
}

#[tokio::test]
async fn deploys_survive_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    rolled_out_and_back(&server).await;
    // Before anything but the profiles themselves is written.
    server.kill();
    let server = Server::start(dir.path());
    let after = deploys(&server, "api").await;
    assert_eq!(versions(&after), [("v41", "v42"), ("v42", "v41"), ("v41", "")]);
    assert!(server.stop().await.success());
    // And from what it has written when it ended.
    let server = Server::start(dir.path());
    assert_eq!(deploys(&server, "api").await, after);
}

#[tokio::test]
async fn announcements_are_kept_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.push(window("a", "v41", 1)).await.unwrap();
    let mut client = DeploysClient::new(server.channel().await);
    let announcement = |version: &str, url: &str| AnnounceDeployRequest {
        service: "api".to_owned(),
        version: version.to_owned(),
        commit: "3f9c2d1".to_owned(),
        url: url.to_owned(),
    };
    let seen = client.announce(announcement("v41", "https://ci.example/1")).await.unwrap();
    assert!(seen.into_inner().seen);
    let seen = client.announce(announcement("v42", "")).await.unwrap();
    assert!(!seen.into_inner().seen, "not yet");
    for (version, url, expected) in
        [("", "", "version is missing"), ("v1", "ftp://x", "begins with")]
    {
        let refused = client.announce(announcement(version, url)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(expected), "{}", refused.message());
    }
    server.kill();
    let server = Server::start(dir.path());
    server.push(window("a", "v42", 0)).await.unwrap();
    let announced: Vec<v1::Announcement> = deploys(&server, "api")
        .await
        .into_iter()
        .filter_map(|deploy| deploy.announcement)
        .collect();
    let urls: Vec<&str> = announced.iter().map(|announced| announced.url.as_str()).collect();
    assert_eq!(urls, ["", "https://ci.example/1"], "the newest deploy is first");
}

#[tokio::test]
async fn http_lists_deploys_too() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    rolled_out_and_back(&server).await;
    let answer = get(server.address, "/api/v1/deploys?service=api&limit=1").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let listed = answer.json();
    let rows = listed["deploys"].as_array().unwrap();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(row["version"], "v41");
    assert_eq!((&row["previous_version"], &row["returned"]), (&json!("v42"), &json!(true)));
    assert!(row["first_unix_ns"].as_u64().unwrap() < row["last_unix_ns"].as_u64().unwrap());
    let answer = get(server.address, "/api/v1/deploys?servise=api").await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}
