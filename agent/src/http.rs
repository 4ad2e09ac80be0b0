//! What the agent answers over HTTP: `/metrics`, `/healthz` and `/debug/pprof/profile`.
//!
//! Meant for a loopback address: there is no authentication, and a profile of the agent
//! costs CPU. The endpoint is served by the export thread's event loop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::health::{Health, HealthReport};
use crate::metrics::{self, Metrics};
use crate::self_profile::{self, SelfProfileError};

/// The longest profile of itself that the agent records.
const MAX_PROFILE: Duration = Duration::from_secs(60);

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
        let served = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => {
                info!("metrics on http://{}/metrics", self.local_addr);
                axum::serve(listener, router).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            warn!(%error, address = %self.local_addr, "metrics are not served any more");
        }
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
