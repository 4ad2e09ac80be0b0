//! Versions that are compared, over gRPC and HTTP.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod harness;

use everflame_compare::{Answer, Comparison, Replication, Verdict};
use everflame_proto::v1::{Batch, CompareRequest, deploys_client::DeploysClient};
use harness::{
    Server,
    batches::{batch, cpu_profile, now_unix_ns, record},
    http::get,
};
use tonic::{Code, Status};

const MINUTE_NS: i64 = 60_000_000_000;

/// What one host does in a window of ten seconds: shares of 190 samples, which are a little different on each host.
fn window(host: usize, version: &str, minutes_ago: i64, slow: i64) -> Batch {
    let more = (host as i64 * 7) % 5;
    let functions: [(&[&str], i64); 4] = [
        (&["parse", "serve", "main"], 60 + more),
        (&["render", "serve", "main"], 40 + slow),
        (&["lookup", "db", "main"], 50 - more),
        (&["compress", "send", "main"], 40),
    ];
    let labels = [("service", "api"), ("version", version), ("pid", "1")];
    let start_unix_ns = now_unix_ns() - minutes_ago * MINUTE_NS;
    let name = format!("web-{host}");
    Batch { start_unix_ns, ..batch(&name, vec![record("cpu", &labels, cpu_profile(&functions))]) }
}

/// A deploy half an hour ago on so many hosts; the second version's `render` costs so much more.
async fn deployed(server: &Server, hosts: usize, slow: i64) {
    for host in 0..hosts {
        for minute in 0..8 {
            server.push(window(host, "v41", 60 - minute, 0)).await.unwrap();
            server.push(window(host, "v42", 30 - minute, slow)).await.unwrap();
        }
    }
}

fn versions(base: &str, compare: &str) -> CompareRequest {
    CompareRequest {
        service: "api".to_owned(),
        base_version: base.to_owned(),
        compare_version: compare.to_owned(),
        ..CompareRequest::default()
    }
}

async fn compare(server: &Server, request: CompareRequest) -> Result<Comparison, Status> {
    let mut client = DeploysClient::new(server.channel().await);
    let response = client.compare(request).await?.into_inner();
    Ok(serde_json::from_slice(&response.comparison_json).unwrap())
}

fn alarms(comparison: &Comparison) -> Vec<(&str, &Verdict)> {
    let functions =
        comparison.report.functions.iter().filter(|function| function.verdict().is_alarm());
    functions.map(|function| (function.name.as_str(), function.verdict())).collect()
}

#[tokio::test]
async fn function_that_became_slower_is_named_first() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    deployed(&server, 6, 20).await;
    let comparison = compare(&server, versions("v41", "v42")).await.unwrap();
    let report = &comparison.report;
    assert_eq!((report.answer, report.basis.replicate), (Answer::Regressed, Replication::Host));
    assert!(report.basis.paired);
    assert_eq!((report.basis.base.replicates, report.basis.compare.replicates), (6, 6));
    assert_eq!(
        alarms(&comparison).first(),
        Some(&("render", &Verdict::Regressed)),
        "{:?}",
        alarms(&comparison)
    );
    // A tenth of a core more: 20 of 190 samples of 1/19 s in each ten seconds.
    let render = &report.functions[0].own;
    assert!(render.cost.ratio.unwrap() > 1.45 && render.cost.ratio.unwrap() < 1.55, "{render:?}");

    // Without a word it is the last deploy; over HTTP it is the same.
    let last = CompareRequest { service: "api".to_owned(), ..CompareRequest::default() };
    let last = compare(&server, last).await.unwrap();
    assert_eq!((last.base.name.as_str(), last.compare.name.as_str()), ("v41", "v42"));
    let answer =
        get(server.address, "/api/v1/compare?service=api&base_version=v41&compare_version=v42")
            .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let over_http: Comparison = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(alarms(&over_http), alarms(&comparison));
}

#[tokio::test]
async fn equal_versions_do_not_differ() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    deployed(&server, 6, 0).await;
    let comparison = compare(&server, versions("v41", "v42")).await.unwrap();
    assert_eq!(comparison.report.answer, Answer::NoChange, "{:?}", alarms(&comparison));
}

#[tokio::test]
async fn version_that_one_host_has_seen_is_not_enough() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    deployed(&server, 6, 0).await;
    server.push(window(0, "v43", 5, 0)).await.unwrap();
    let request = CompareRequest { warm_up_ns: Some(0), ..versions("v42", "v43") };
    let comparison = compare(&server, request).await.unwrap();
    assert_eq!(comparison.report.answer, Answer::NotEnoughData);
    assert_eq!(comparison.report.basis.compare.hosts, 1);
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    deployed(&server, 1, 0).await;
    let check = async |request, code, message: &str| {
        let status = compare(&server, request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(message), "{status}");
    };
    check(versions("v41", "v24"), Code::NotFound, "did you mean v42 or v41?").await;
    check(versions("v42", "v42"), Code::InvalidArgument, "both sides are version `v42`").await;
    check(versions("v41", ""), Code::InvalidArgument, "give two versions").await;
    let other = CompareRequest { service: "apl".to_owned(), ..CompareRequest::default() };
    check(other, Code::NotFound, "did you mean api?").await;
    let answer = get(
        server.address,
        "/api/v1/compare?service=api&base_from=-3h&base_to=-1h&compare_from=-2h&compare_to=-30m",
    )
    .await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("overlap"), "{}", answer.text());
}

/// Clocks of hosts differ: versions are told by their label, not by when they ran elsewhere.
#[tokio::test]
async fn host_whose_clock_is_wrong_is_compared_with_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    for host in 0..6 {
        // The last one is twenty minutes behind.
        let skew = if host == 5 { 20 } else { 0 };
        for minute in 0..8 {
            server.push(window(host, "v41", 60 + skew - minute, 0)).await.unwrap();
            server.push(window(host, "v42", 30 + skew - minute, 20)).await.unwrap();
        }
    }
    let comparison = compare(&server, versions("v41", "v42")).await.unwrap();
    assert_eq!(comparison.report.basis.base.replicates, 6);
    assert_eq!(alarms(&comparison).first(), Some(&("render", &Verdict::Regressed)));
}

/// What instances do in their first minutes is not what they do later.
#[tokio::test]
async fn instances_that_have_just_started_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    for host in 0..6 {
        for minute in 0..8 {
            server.push(window(host, "v41", 60 - minute, 0)).await.unwrap();
            // Slow in the first two minutes.
            server
                .push(window(host, "v42", 30 - minute, if minute < 2 { 200 } else { 0 }))
                .await
                .unwrap();
        }
    }
    let comparison = compare(&server, versions("v41", "v42")).await.unwrap();
    assert_eq!(comparison.report.answer, Answer::NoChange, "{:?}", alarms(&comparison));
    assert_eq!(comparison.compare.warm_up_windows, 12);
    let without = CompareRequest { warm_up_ns: Some(0), ..versions("v41", "v42") };
    let without = compare(&server, without).await.unwrap();
    assert_eq!(without.compare.warm_up_windows, 0);
    assert_eq!(alarms(&without).first().map(|(name, _)| *name), Some("render"));
}
