//! Questions over gRPC and HTTP, with known answers.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod harness;

use everflame_proto::v1;
use harness::{
    Server,
    batches::{batch, cpu_profile, record},
    everything,
    http::{get, request},
};
use serde_json::{Value, json};
use tonic::Code;

/// Two hosts, two services: the api spends 30 samples in work and 10 in idle, the
/// web service 60 in render.
async fn server_with_profiles(dir: &std::path::Path) -> Server {
    let server = Server::start(dir);
    let api = || cpu_profile(&[(&["work", "main"], 15), (&["idle", "main"], 5)]);
    let web = cpu_profile(&[(&["render", "main"], 60)]);
    let v41 = [("service", "api"), ("version", "v41"), ("pid", "1")];
    let v42 = [("service", "api"), ("version", "v42"), ("pid", "2")];
    let profiles =
        vec![record("cpu", &v41, api()), record("cpu", &[("service", "web"), ("pid", "3")], web)];
    server.push(batch("host-a", profiles)).await.unwrap();
    server.push(batch("host-b", vec![record("cpu", &v42, api())])).await.unwrap();
    server
}

async fn json(server: &Server, path: &str) -> Value {
    let answer = get(server.address, path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    assert!(answer.head.contains("application/json"), "{}", answer.head);
    answer.json()
}

#[tokio::test]
async fn http_lists_kinds_labels_and_series() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with_profiles(dir.path()).await;
    assert_eq!(json(&server, "/api/v1/kinds").await, json!({"kinds": ["cpu"]}));
    let names = json(&server, "/api/v1/labels").await;
    assert_eq!(names, json!({"names": ["host", "pid", "service", "version"]}));
    let values = json(&server, "/api/v1/label/service/values").await;
    assert_eq!(values, json!({"values": ["api", "web"]}));
    let path = r#"/api/v1/label/version/values?selector={host="host-b"}"#;
    assert_eq!(json(&server, path).await, json!({"values": ["v42"]}));
    assert_eq!(json(&server, "/api/v1/kinds?to=-1h&from=-2h").await, json!({"kinds": []}));

    let series = json(&server, r#"/api/v1/series?selector={service="web"}"#).await;
    assert_eq!(series["series"].as_array().unwrap().len(), 1);
    let web = &series["series"][0];
    assert_eq!(web["kind"], "cpu");
    assert_eq!(web["labels"], json!({"host": "host-a", "pid": "3", "service": "web"}));
    assert_eq!(web["profiles"], 1);
    let seconds = web["last_unix_ns"].as_u64().unwrap() - web["first_unix_ns"].as_u64().unwrap();
    assert_eq!(seconds, 10_000_000_000);
}

#[tokio::test]
async fn http_top_merges_what_the_selector_matches() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with_profiles(dir.path()).await;
    let top = json(&server, r#"/api/v1/top?selector={service="api"}&sample_type=samples"#).await;
    assert_eq!((&top["sample_type"], &top["unit"]), (&json!("samples"), &json!("count")));
    assert_eq!(top["total_value"], 40);
    let rows: Vec<_> = top["functions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (row["name"].as_str().unwrap(), row["self_value"].clone(), row["total_value"].clone())
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("work", json!(30), json!(30)),
            ("idle", json!(10), json!(10)),
            ("main", json!(0), json!(40))
        ]
    );
    let one = json(&server, r#"/api/v1/top?selector={version=~"v4[2-9]"}&limit=1"#).await;
    assert_eq!(one["sample_type"], "cpu");
    assert_eq!(one["functions"].as_array().unwrap().len(), 1);
    assert_eq!(one["functions"][0]["self_value"], 150_000_000);
}

#[tokio::test]
async fn http_merge_gives_pprof_and_flame() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with_profiles(dir.path()).await;
    let pprof = get(server.address, "/api/v1/merge").await;
    assert_eq!(pprof.status, 200);
    let profile = everflame_profile::decode(&pprof.body, &Default::default()).unwrap();
    let samples: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
    assert_eq!(samples, 100);
    // One window on each of two hosts, although three processes were seen in them.
    assert_eq!(profile.duration_nanos, 20_000_000_000);
    let flame = json(&server, "/api/v1/merge?format=flame&sample_type=samples").await;
    assert_eq!(flame["root"]["total_value"], 100);
    assert_eq!(flame["root"]["children"][0]["name"], "main");
    assert_eq!(flame["root"]["children"][0]["children"][0]["name"], "render");
}

#[tokio::test]
async fn http_diff_compares_two_selections() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with_profiles(dir.path()).await;
    let path = r#"/api/v1/diff?base_selector={service="api"}&compare_selector={service="web"}&sample_type=samples"#;
    let diff = json(&server, path).await;
    assert_eq!((&diff["base_total"], &diff["compare_total"]), (&json!(40), &json!(60)));
    // One window on each of two hosts; one window of one host.
    assert_eq!((&diff["base_seconds"], &diff["compare_seconds"]), (&json!(20.0), &json!(10.0)));
    let render = &diff["functions"][0];
    assert_eq!(
        (&render["name"], &render["base_self"], &render["compare_self"]),
        (&json!("render"), &json!(0), &json!(60))
    );
}

#[tokio::test]
async fn http_errors_have_a_code_a_message_and_the_position() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with_profiles(dir.path()).await;
    let check = async |path: &str, status: u16, code: &str, message: &str| {
        let answer = get(server.address, path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        let error = &answer.json()["error"];
        assert_eq!(error["code"], code, "{path}");
        assert!(error["message"].as_str().unwrap().contains(message), "{path}: {error}");
        error["position"].clone()
    };
    let position = check(
        r#"/api/v1/top?selector={service="api",version~"v"}"#,
        400,
        "bad_selector",
        "column 23",
    )
    .await;
    assert_eq!(position, 23);
    check(r#"/api/v1/top?selector={service=~"("}"#, 400, "bad_selector", "unclosed group").await;
    check("/api/v1/top?from=yesterday", 400, "bad_time", "yesterday").await;
    check("/api/v1/top?from=now&to=-1h", 400, "bad_time", "ends before").await;
    check("/api/v1/top?kind=heap", 400, "unknown_kind", "cpu, offcpu").await;
    check("/api/v1/top?sample_type=bytes", 400, "unknown_sample_type", "samples").await;
    check("/api/v1/top?form=-1h", 400, "bad_parameter", "unknown field").await;
    check("/api/v1/top?limit=x", 400, "bad_parameter", "limit").await;
    check("/api/v1/merge?format=svg", 400, "bad_parameter", "pprof or flame").await;
    check(r#"/api/v1/top?selector={service="x"}"#, 404, "no_data", "no cpu profiles").await;
    check("/api/v1/kinds?selector={x}", 400, "bad_parameter", "selector").await;
    let answer = harness::http::raw(server.address, "GET", "/api/v1/label/%ff/values").await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("bad_parameter")));
    check("/api/v1/nothing", 404, "not_found", "").await;
    let answer = request(server.address, "POST", "/api/v1/top").await;
    assert_eq!(answer.status, 405);
}

#[tokio::test]
async fn expensive_queries_are_refused_with_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ["--max-query-profiles", "2", "--max-query-series", "2"];
    drop(server_with_profiles(dir.path()).await);
    let server = Server::start_with(dir.path(), &limits);
    let answer = get(server.address, "/api/v1/top").await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (422, &json!("too_expensive")));
    assert_eq!(get(server.address, "/api/v1/series").await.status, 422);
    assert_eq!(get(server.address, r#"/api/v1/top?selector={service="api"}"#).await.status, 200);
    drop(server);
    let server = Server::start_with(dir.path(), &["--max-query-bytes", "1KiB"]);
    let answer = get(server.address, "/api/v1/top").await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (422, &json!("too_expensive")));
    assert!(answer.text().contains("--max-query-bytes"), "{}", answer.text());
}

#[tokio::test]
async fn grpc_answers_the_same_questions() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with_profiles(dir.path()).await;
    let mut query = server.query().await;
    let kinds = query.kinds(v1::KindsRequest { range: None }).await.unwrap().into_inner();
    assert_eq!(kinds.kinds, ["cpu"]);
    let request = v1::LabelNamesRequest { selection: everything("cpu", "") };
    let names = query.label_names(request).await.unwrap().into_inner().names;
    assert_eq!(names, ["host", "pid", "service", "version"]);
    let request = v1::LabelValuesRequest {
        name: "service".into(),
        selection: everything("cpu", r#"{pid!~"."}"#),
    };
    let values = query.label_values(request).await.unwrap().into_inner().values;
    assert!(values.is_empty(), "{values:?}");
    let request = v1::SeriesRequest { selection: everything("cpu", r#"{service="api"}"#) };
    let series = query.series(request).await.unwrap().into_inner().series;
    assert_eq!(series.iter().map(|series| series.profiles).sum::<u64>(), 2);
    let request = v1::MergeRequest { selection: everything("cpu", "") };
    let pprof = query.merge_pprof(request.clone()).await.unwrap().into_inner().pprof_gz;
    everflame_profile::decode(&pprof, &Default::default()).unwrap();
    let flame = query.merge_flame(request).await.unwrap().into_inner();
    assert_eq!((flame.sample_type.as_str(), flame.unit.as_str()), ("cpu", "nanoseconds"));
    assert_eq!(flame.root.unwrap().total_value, 1_000_000_000);
    let request = v1::TopRequest { selection: everything("cpu", ""), limit: 1 };
    let top = query.top(request).await.unwrap().into_inner();
    assert_eq!(top.functions[0].name, "render");
    let request = v1::DiffRequest {
        base: everything("cpu", r#"{version="v41"}"#),
        compare: everything("cpu", r#"{version="v42"}"#),
        limit: 0,
    };
    let diff = query.diff(request).await.unwrap().into_inner();
    assert_eq!((diff.base_total, diff.base_seconds), (diff.compare_total, diff.compare_seconds));
}

#[tokio::test]
async fn grpc_errors_have_the_right_code_and_say_where() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with_profiles(dir.path()).await;
    let mut query = server.query().await;
    let request = v1::TopRequest { selection: everything("cpu", "{service"), limit: 0 };
    let status = query.top(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("column 9"), "{status}");
    let request = v1::TopRequest { selection: everything("lock", ""), limit: 0 };
    assert_eq!(query.top(request).await.unwrap_err().code(), Code::NotFound);
    let request = v1::TopRequest { selection: None, limit: 0 };
    assert_eq!(query.top(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_repeats_other_profiles_is_merged_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let profile = |samples| cpu_profile(&[(&["work", "main"], samples)]);
    let plain = record("cpu", &[("pid", "1")], profile(10));
    let whole = record("cpu", &[("oom", "true"), ("pid", "1")], profile(70));
    server.push(batch("host-a", vec![plain, whole])).await.unwrap();
    for (selector, total) in [(r#"{pid="1"}"#, 10), (r#"{pid="1",oom="true"}"#, 70)] {
        let top =
            json(&server, &format!("/api/v1/top?selector={selector}&sample_type=samples")).await;
        assert_eq!(top["total_value"], total, "{selector}");
    }
}
