//! What operators and their tools look at: health, metrics, the server's own profile.

use std::time::Duration;

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio::task;

use super::{ApiState, error::ApiError};
use crate::{
    causes::with_causes,
    self_profile::{self, SelfProfileError},
    store::{Room, StoreError, Usage},
};

const MAX_OWN_PROFILE: Duration = Duration::from_secs(300);
const DEFAULT_OWN_PROFILE_S: u64 = 10;

#[derive(Debug, Deserialize)]
pub(super) struct OwnProfileParams {
    seconds: Option<u64>,
}

/// 200 while batches are taken, 503 with the reason while they are not. Queries
/// work either way.
pub(super) async fn healthz(State(state): State<ApiState>) -> Response {
    let store = state.store;
    match task::spawn_blocking(move || store.check_writable()).await {
        Ok(Ok(())) => "ok\n".into_response(),
        Ok(Err(err)) => (StatusCode::SERVICE_UNAVAILABLE, with_causes(&err) + "\n").into_response(),
        Err(err) => (StatusCode::INTERNAL_SERVER_ERROR, with_causes(&err) + "\n").into_response(),
    }
}

pub(super) async fn metrics(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let store = state.store;
    let measure = move || -> Result<(Usage, Room), StoreError> {
        let usage = store.usage()?;
        let room = match store.check_room() {
            Err(StoreError::NoRoom { free_bytes, .. }) => Room { free_bytes, total_bytes: 0 },
            room => room?,
        };
        Ok((usage, room))
    };
    // Old figures for the disk are better than no metrics at all.
    match task::spawn_blocking(measure).await {
        Ok(Ok((usage, room))) => state.metrics.disk(usage, room),
        Ok(Err(err)) => tracing::warn!(error = with_causes(&err), "cannot measure the store"),
        Err(err) => tracing::error!(error = with_causes(&err), "measuring the store failed"),
    }
    let text = state.metrics.encode().map_err(|_format| internal("cannot format the metrics"))?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

pub(super) async fn own_profile(
    params: Result<Query<OwnProfileParams>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(params) = params.map_err(|rejection| bad_seconds(&rejection.body_text()))?;
    let duration = Duration::from_secs(params.seconds.unwrap_or(DEFAULT_OWN_PROFILE_S));
    if duration.is_zero() || duration > MAX_OWN_PROFILE {
        return Err(bad_seconds("seconds must be from 1 to 300"));
    }
    let profile = self_profile::record(duration).await.map_err(|err| match err {
        SelfProfileError::Busy => {
            ApiError::new(StatusCode::CONFLICT, "profiler_busy", &with_causes(&err))
        }
        err => internal(&with_causes(&err)),
    })?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"profile.pb.gz\""),
    ];
    Ok((headers, profile).into_response())
}

fn bad_seconds(message: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "bad_parameter", message)
}

fn internal(message: &str) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
}
