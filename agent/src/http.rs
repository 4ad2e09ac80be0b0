//! What the agent answers over HTTP: `/metrics`, `/healthz` and `/debug/pprof/profile`.
//!
//! Meant for a loopback address: there is no authentication, and a profile of the agent
//! costs CPU. The endpoint is served by the export thread's event loop. Whoever connects
//! cannot take more than a few file descriptors, nor keep them: connections are limited in
//! number and in time, and carry one request each.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::health::{Health, HealthReport};
use crate::metrics::{self, Metrics};
use crate::self_profile::{self, SelfProfileError};

/// The longest profile of itself that the agent records.
const MAX_PROFILE: Duration = Duration::from_secs(60);

/// Connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16;

/// How long a client may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest life of a connection: the longest profile, and time to fetch it.
const CONNECTION_TIMEOUT: Duration = MAX_PROFILE.saturating_add(Duration::from_secs(30));

/// The wait after a connection could not be accepted, as for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Why the endpoint cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address} for metrics; choose another address with --metrics")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A bound endpoint that is not served yet.
#[derive(Debug)]
pub struct HttpEndpoint {
    listener: TcpListener,
    local_addr: SocketAddr,
    sources: Sources,
}

/// What the answers are made of.
#[derive(Clone, Debug)]
struct Sources {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

impl HttpEndpoint {
    /// Binds `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Result<Self, HttpError> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let local_addr = listener.local_addr()?;
            Ok((listener, local_addr))
        };
        let (listener, local_addr) =
            bind().map_err(|source| HttpError::Bind { address, source })?;
        if !local_addr.ip().is_loopback() {
            warn!(address = %local_addr, "metrics and self-profiles are served beyond this host, \
                without authentication");
        }
        Ok(Self { listener, local_addr, sources: Sources { metrics, health } })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until dropped.
    pub(crate) async fn serve(self) {
        let router = Router::new()
            .route("/metrics", get(serve_metrics))
            .route("/healthz", get(serve_health))
            .route("/debug/pprof/profile", get(serve_profile))
            .with_state(self.sources);
        match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => {
                info!("metrics on http://{}/metrics", self.local_addr);
                match accept_all(&listener, &router).await {}
            }
            Err(error) => warn!(%error, address = %self.local_addr, "metrics are not served"),
        }
    }
}

async fn accept_all(listener: &tokio::net::TcpListener, router: &Router) -> Infallible {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut http = http1::Builder::new();
    http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    loop {
        // Never closed, so there is always a permit to wait for.
        let permit = Arc::clone(&room).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                debug!(%error, "cannot accept a connection for metrics");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _permit = permit;
            match timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a client of the metrics endpoint failed"),
                Err(_) => debug!("a client of the metrics endpoint took too long"),
            }
        });
    }
}

async fn serve_metrics(State(sources): State<Sources>) -> Response {
    match sources.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(std::fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The body of `/healthz`.
#[derive(Serialize)]
struct HealthBody {
    #[serde(flatten)]
    report: HealthReport,
    spool_batches: i64,
    spool_bytes: i64,
}

async fn serve_health(State(sources): State<Sources>) -> Response {
    let body = HealthBody {
        report: sources.health.report(),
        spool_batches: sources.metrics.spool_batches.get(),
        spool_bytes: sources.metrics.spool_bytes.get(),
    };
    let status = if body.report.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(&body) {
        Ok(json) => (status, [(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[derive(Deserialize)]
struct ProfileQuery {
    #[serde(default = "default_seconds")]
    seconds: u64,
}

fn default_seconds() -> u64 {
    30
}

async fn serve_profile(Query(query): Query<ProfileQuery>) -> Response {
    let duration = Duration::from_secs(query.seconds);
    if duration.is_zero() || duration > MAX_PROFILE {
        let message = format!("seconds must be 1 to {}\n", MAX_PROFILE.as_secs());
        return (StatusCode::BAD_REQUEST, message).into_response();
    }
    match self_profile::record(duration).await {
        Ok(profile) => {
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CONTENT_DISPOSITION, "attachment; filename=\"profile.pb.gz\""),
            ];
            (headers, profile).into_response()
        }
        Err(error @ SelfProfileError::Busy) => {
            (StatusCode::CONFLICT, format!("{error}\n")).into_response()
        }
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "no profile of the agent itself");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}
