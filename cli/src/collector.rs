//! Asks a collector, over gRPC (`everflame.v1.Query` and `.Deploys`), one question at a time.

use std::time::Duration;

use everflame_compare::Comparison;
use everflame_profile::pprof::Profile;
use everflame_profile::{DecodeError, DiffTable, FunctionDiff, FunctionTotals, TopTable, decode};
use everflame_proto::v1::deploys_client::DeploysClient;
use everflame_proto::v1::query_client::QueryClient;
use everflame_proto::v1::{
    AnnounceDeployRequest, CompareRequest, Deploy, DiffRequest, KindsRequest, ListDeploysRequest,
    MergeRequest, Selection, Series, SeriesRequest, TimeRange, TopRequest,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::failure::ExitStatus;
use crate::files::LIMITS;
use crate::when::Range;

/// Where a collector listens unless it is told otherwise.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:4040";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Queries over weeks take a while, but nobody waits longer for one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Why a collector did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectorError {
    #[error("`{url}` is not the address of a collector; give something like {DEFAULT_URL}")]
    Url {
        url: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("cannot use {url}: collectors are asked over http:// for now, as in {DEFAULT_URL}")]
    Scheme { url: String },
    #[error("cannot reach a collector at {url}")]
    Unreachable {
        url: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("cannot talk to a collector")]
    Runtime {
        #[source]
        source: std::io::Error,
    },
    /// The collector understood and said no, or the connection broke.
    #[error("the collector at {url} says: {}", describe(status))]
    Status { url: String, status: Box<Status> },
    #[error(
        "the collector at {url} sent a comparison that cannot be read; it is of another version, maybe"
    )]
    Comparison {
        url: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the collector at {url} sent a profile that cannot be used")]
    Profile {
        url: String,
        #[source]
        source: DecodeError,
    },
}

impl CollectorError {
    pub(crate) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Url { .. } | Self::Scheme { .. } => ExitStatus::Usage,
            Self::Unreachable { .. } => ExitStatus::Unavailable,
            Self::Runtime { .. } => ExitStatus::Io,
            Self::Profile { .. } | Self::Comparison { .. } => ExitStatus::BadData,
            Self::Status { status, .. } => match status.code() {
                Code::InvalidArgument | Code::OutOfRange => ExitStatus::Usage,
                Code::NotFound => ExitStatus::NoData,
                Code::DataLoss => ExitStatus::BadData,
                Code::ResourceExhausted | Code::Aborted => ExitStatus::TryAgain,
                Code::PermissionDenied | Code::Unauthenticated => ExitStatus::Permission,
                Code::Internal | Code::Unknown => ExitStatus::Internal,
                _ => ExitStatus::Unavailable,
            },
        }
    }

    pub(crate) fn way_out(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => Some(
                "start one with `everflame-server --data-dir DIR`, or say where it is with \
                 --server URL or EVERFLAME_SERVER",
            ),
            Self::Status { status, .. } if status.code() == Code::NotFound => {
                Some("`everflame services` shows what there is")
            }
            _ => None,
        }
    }
}

fn describe(status: &Status) -> &str {
    if status.message().is_empty() { status.code().description() } else { status.message() }
}

/// A connection to a collector.
#[derive(Debug)]
pub(crate) struct Collector {
    url: String,
    runtime: Runtime,
    client: QueryClient<Channel>,
    deploys: DeploysClient<Channel>,
}

/// The kind, labels, time and value that are asked for.
pub(crate) fn selection(
    kind: &str,
    selector: &str,
    range: Range,
    sample_type: Option<&str>,
) -> Selection {
    Selection {
        kind: kind.to_owned(),
        selector: selector.to_owned(),
        range: Some(time_range(range)),
        sample_type: sample_type.unwrap_or_default().to_owned(),
    }
}

pub(crate) fn time_range(range: Range) -> TimeRange {
    TimeRange { start_unix_ns: range.start_unix_ns, end_unix_ns: range.end_unix_ns }
}

impl Collector {
    /// Connects to `http://HOST:PORT`, or just `HOST:PORT`.
    pub(crate) fn connect(url: &str) -> Result<Self, CollectorError> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        if !url.starts_with("http://") {
            return Err(CollectorError::Scheme { url });
        }
        let endpoint = match Endpoint::from_shared(url.clone()) {
            Ok(endpoint) => endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT),
            Err(source) => return Err(CollectorError::Url { url, source }),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| CollectorError::Runtime { source })?;
        let channel = match runtime.block_on(endpoint.connect()) {
            Ok(channel) => channel,
            Err(source) => return Err(CollectorError::Unreachable { url, source }),
        };
        let client = QueryClient::new(channel.clone())
            .max_decoding_message_size(LIMITS.max_compressed_bytes);
        let deploys =
            DeploysClient::new(channel).max_decoding_message_size(LIMITS.max_compressed_bytes);
        Ok(Self { url, runtime, client, deploys })
    }

    /// The kinds of profile that there are.
    pub(crate) fn kinds(&mut self, range: Range) -> Result<Vec<String>, CollectorError> {
        let request = KindsRequest { range: Some(time_range(range)) };
        let answer = self.runtime.block_on(self.client.kinds(request));
        Ok(self.answer(answer)?.kinds)
    }

    /// The distinct label sets.
    pub(crate) fn series(&mut self, selection: Selection) -> Result<Vec<Series>, CollectorError> {
        let request = SeriesRequest { selection: Some(selection) };
        let answer = self.runtime.block_on(self.client.series(request));
        Ok(self.answer(answer)?.series)
    }

    /// The `limit` most expensive functions, or all of them if it is 0.
    pub(crate) fn top(
        &mut self,
        selection: Selection,
        limit: u32,
    ) -> Result<TopTable, CollectorError> {
        let request = TopRequest { selection: Some(selection), limit };
        let answer = self.runtime.block_on(self.client.top(request));
        let top = self.answer(answer)?;
        let functions = top
            .functions
            .into_iter()
            .map(|function| FunctionTotals {
                name: function.name,
                filename: function.filename,
                self_value: function.self_value,
                total_value: function.total_value,
            })
            .collect();
        Ok(TopTable {
            sample_type: top.sample_type,
            unit: top.unit,
            total_value: top.total_value,
            functions,
        })
    }

    /// The sum of all profiles that match.
    pub(crate) fn merge(&mut self, selection: Selection) -> Result<Profile, CollectorError> {
        let request = MergeRequest { selection: Some(selection) };
        let answer = self.runtime.block_on(self.client.merge_pprof(request));
        let pprof_gz = self.answer(answer)?.pprof_gz;
        decode(&pprof_gz, &LIMITS)
            .map_err(|source| CollectorError::Profile { url: self.url.clone(), source })
    }

    /// All functions on both sides.
    pub(crate) fn diff(
        &mut self,
        base: Selection,
        compare: Selection,
    ) -> Result<DiffTable, CollectorError> {
        let request = DiffRequest { base: Some(base), compare: Some(compare), limit: 0 };
        let answer = self.runtime.block_on(self.client.diff(request));
        let diff = self.answer(answer)?;
        let functions = diff
            .functions
            .into_iter()
            .map(|function| FunctionDiff {
                name: function.name,
                filename: function.filename,
                base_self: function.base_self,
                base_total: function.base_total,
                compare_self: function.compare_self,
                compare_total: function.compare_total,
            })
            .collect();
        Ok(DiffTable {
            sample_type: diff.sample_type,
            unit: diff.unit,
            base_total: diff.base_total,
            compare_total: diff.compare_total,
            base_seconds: diff.base_seconds,
            compare_seconds: diff.compare_seconds,
            functions,
        })
    }

    /// Deploys, newest first.
    pub(crate) fn deploys(
        &mut self,
        request: ListDeploysRequest,
    ) -> Result<Vec<Deploy>, CollectorError> {
        let answer = self.runtime.block_on(self.deploys.list(request));
        Ok(self.answer(answer)?.deploys)
    }

    /// Whether two versions of a service differ.
    pub(crate) fn compare(
        &mut self,
        request: CompareRequest,
    ) -> Result<Comparison, CollectorError> {
        let answer = self.runtime.block_on(self.deploys.compare(request));
        let json = self.answer(answer)?.comparison_json;
        serde_json::from_slice(&json)
            .map_err(|source| CollectorError::Comparison { url: self.url.clone(), source })
    }

    /// Announces a version. Whether it has been seen.
    pub(crate) fn announce(
        &mut self,
        request: AnnounceDeployRequest,
    ) -> Result<bool, CollectorError> {
        let answer = self.runtime.block_on(self.deploys.announce(request));
        Ok(self.answer(answer)?.seen)
    }

    fn answer<T>(&self, answer: Result<tonic::Response<T>, Status>) -> Result<T, CollectorError> {
        answer.map(tonic::Response::into_inner).map_err(|status| CollectorError::Status {
            url: self.url.clone(),
            status: Box::new(status),
        })
    }
}
