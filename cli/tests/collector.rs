//! What the commands ask a collector and what they make of its answers. The collector is a
//! mock: it answers every question with the same few functions and remembers the question.
//! (That the real one answers is for the end-to-end tests.)
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod everflame;
mod golden;

use std::sync::{Arc, Mutex};

use everflame_profile::{FunctionInfo, ProfileBuilder, encode_gz};
use everflame_proto::v1::query_server::{Query, QueryServer};
use everflame_proto::v1::{
    DiffFunction, DiffRequest, DiffResponse, KindsRequest, KindsResponse, Label, LabelNamesRequest,
    LabelNamesResponse, LabelValuesRequest, LabelValuesResponse, MergeFlameResponse,
    MergePprofResponse, MergeRequest, Selection, Series, SeriesRequest, SeriesResponse,
    TopFunction, TopRequest, TopResponse,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

use crate::everflame::{Outcome, everflame};
use crate::golden::golden;

/// The mock, as its answers see it.
#[derive(Clone, Default)]
struct Mock {
    asked: Arc<Mutex<Vec<Selection>>>,
    /// What it answers instead, if anything.
    refusal: Option<(Code, &'static str)>,
}

impl Mock {
    fn hear<T>(
        &self,
        selections: impl IntoIterator<Item = Option<Selection>>,
        answer: T,
    ) -> Result<Response<T>, Status> {
        self.asked.lock().unwrap().extend(selections.into_iter().flatten());
        match self.refusal {
            Some((code, message)) => Err(Status::new(code, message)),
            None => Ok(Response::new(answer)),
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Query for Mock {
    async fn kinds(&self, _: Request<KindsRequest>) -> Answer<KindsResponse> {
        self.hear([], KindsResponse { kinds: vec!["cpu".to_owned(), "lock".to_owned()] })
    }

    async fn label_names(&self, _: Request<LabelNamesRequest>) -> Answer<LabelNamesResponse> {
        Err(Status::unimplemented("mock"))
    }

    async fn label_values(&self, _: Request<LabelValuesRequest>) -> Answer<LabelValuesResponse> {
        Err(Status::unimplemented("mock"))
    }

    async fn series(&self, request: Request<SeriesRequest>) -> Answer<SeriesResponse> {
        let selection = request.into_inner().selection;
        let kind = selection.clone().unwrap_or_default().kind;
        let series = |service: &str, version: &str, first_s: i64| Series {
            kind: kind.clone(),
            labels: [("host", "web-1"), ("service", service), ("version", version)]
                .map(|(name, value)| Label { name: name.to_owned(), value: value.to_owned() })
                .to_vec(),
            first_unix_ns: first_s * 1_000_000_000,
            last_unix_ns: (first_s + 3600) * 1_000_000_000,
            profiles: 1234,
        };
        let series = vec![series("api", "v41", 1_700_000_000), series("api", "v42", 1_700_003_600)];
        self.hear([selection], SeriesResponse { series })
    }

    async fn merge_pprof(&self, request: Request<MergeRequest>) -> Answer<MergePprofResponse> {
        let mut builder = ProfileBuilder::new(&[("cpu", "nanoseconds")], "cpu");
        let function = builder.function(FunctionInfo { name: "serve", ..FunctionInfo::default() });
        let location = builder.location(None, 1, &[(function, 1)]);
        builder.sample(&[location], &[1_000_000_000], &[]);
        let pprof_gz = encode_gz(&builder.finish());
        self.hear([request.into_inner().selection], MergePprofResponse { pprof_gz })
    }

    async fn merge_flame(&self, _: Request<MergeRequest>) -> Answer<MergeFlameResponse> {
        Err(Status::unimplemented("mock"))
    }

    async fn top(&self, request: Request<TopRequest>) -> Answer<TopResponse> {
        let function = TopFunction {
            name: "serve".to_owned(),
            filename: "/src/api.rs".to_owned(),
            self_value: 750_000_000,
            total_value: 1_000_000_000,
        };
        let top = TopResponse {
            sample_type: "cpu".to_owned(),
            unit: "nanoseconds".to_owned(),
            total_value: 1_000_000_000,
            functions: vec![function],
        };
        self.hear([request.into_inner().selection], top)
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Answer<DiffResponse> {
        let function = DiffFunction {
            name: "serve".to_owned(),
            base_self: 500_000_000,
            base_total: 500_000_000,
            compare_self: 750_000_000,
            compare_total: 750_000_000,
            ..DiffFunction::default()
        };
        let diff = DiffResponse {
            sample_type: "cpu".to_owned(),
            unit: "nanoseconds".to_owned(),
            base_total: 1_000_000_000,
            compare_total: 1_000_000_000,
            base_seconds: 10.0,
            compare_seconds: 10.0,
            functions: vec![function],
        };
        let request = request.into_inner();
        self.hear([request.base, request.compare], diff)
    }
}

/// Runs a command against the mock; what it was asked comes second.
fn ask(mock: &Mock, arguments: &str) -> (Outcome, Vec<Selection>) {
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(QueryServer::new(mock.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    runtime.spawn(server);
    let dir = tempfile::tempdir().unwrap();
    let outcome = everflame(dir.path(), &format!("{arguments} --server http://{address}"));
    let asked = std::mem::take(&mut *mock.asked.lock().unwrap());
    (outcome, asked)
}

/// The length of the range that was asked for, in seconds.
fn length_s(selection: &Selection) -> i64 {
    let range = selection.range.as_ref().expect("a range");
    (range.end_unix_ns - range.start_unix_ns) / 1_000_000_000
}

#[test]
fn top_asks_for_the_last_hour_of_cpu() {
    let (outcome, asked) = ask(&Mock::default(), "top");
    golden("collector-top.txt", &outcome.success());
    assert_eq!(asked.len(), 1);
    let expected = Selection { kind: "cpu".to_owned(), ..Selection::default() };
    assert_eq!(Selection { range: None, ..asked[0].clone() }, expected);
    assert_eq!(length_s(&asked[0]), 3600);
}

#[test]
fn what_is_selected_is_asked_for() {
    let arguments = "top --kind lock --selector {service=\"api\"} --sample-type delay \
                     --from 1600000000 --to 2020-09-13T12:26:50Z --format json";
    let (outcome, asked) = ask(&Mock::default(), arguments);
    assert!(outcome.success().contains("\"self_value\": 750000000"));
    let selection = &asked[0];
    assert_eq!(selection.kind, "lock");
    assert_eq!(selection.selector, "{service=\"api\"}");
    assert_eq!(selection.sample_type, "delay");
    let range = selection.range.as_ref().unwrap();
    assert_eq!(range.start_unix_ns, 1_600_000_000_000_000_000);
    assert_eq!(range.end_unix_ns, 1_600_000_010_000_000_000);
}

#[test]
fn flame_and_pprof_come_from_the_merged_profile() {
    let (outcome, _) = ask(&Mock::default(), "flame --format folded");
    assert_eq!(outcome.success(), "serve 1000000000\n");
    let (outcome, _) = ask(&Mock::default(), "top --format pprof -o /dev/null");
    assert_eq!(outcome.success(), "");
}

#[test]
fn diff_asks_for_both_sides() {
    let arguments = "diff --selector {version=\"v42\"} --base-selector {version=\"v41\"} \
                     --base-from -1d --from -2h";
    let (outcome, asked) = ask(&Mock::default(), arguments);
    golden("collector-diff.txt", &outcome.success());
    assert_eq!(asked[0].selector, "{version=\"v41\"}");
    assert_eq!(asked[1].selector, "{version=\"v42\"}");
    assert_eq!((length_s(&asked[0]), length_s(&asked[1])), (7200, 7200));
    let start = |selection: &Selection| selection.range.as_ref().unwrap().start_unix_ns;
    assert_eq!((start(&asked[1]) - start(&asked[0])) / 1_000_000_000, 22 * 3600);
}

#[test]
fn services_asks_for_every_kind() {
    let (outcome, asked) = ask(&Mock::default(), "services");
    golden("collector-services.txt", &outcome.success());
    let kinds: Vec<_> = asked.iter().map(|selection| selection.kind.as_str()).collect();
    assert_eq!(kinds, ["cpu", "lock"]);
    let (outcome, asked) = ask(&Mock::default(), "services --kind lock --format json");
    golden("collector-services.json", &outcome.success());
    assert_eq!(asked.len(), 1);
}

#[test]
fn refusals_have_their_exit_code_and_the_collectors_words() {
    let cases = [
        (Code::InvalidArgument, "position 8: expected `=`", 64),
        (Code::NotFound, "no cpu profiles match", 2),
        (Code::Unauthenticated, "no token", 77),
        (Code::ResourceExhausted, "too many profiles", 75),
        (Code::Unavailable, "busy", 69),
        (Code::Internal, "broken", 70),
    ];
    for (code, message, exit_code) in cases {
        let mock = Mock { refusal: Some((code, message)), ..Mock::default() };
        for arguments in ["top", "flame", "diff --base-from -1d", "services"] {
            let (outcome, _) = ask(&mock, arguments);
            assert_eq!(outcome.code, Some(exit_code), "{arguments}: {outcome:?}");
            assert!(outcome.stderr.contains(message), "{arguments}: {outcome:?}");
        }
    }
}
