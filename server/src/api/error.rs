//! Errors as JSON, with the status that says whose fault it is.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    causes::with_causes,
    query::error::{Fault, QueryError},
};

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: Body,
}

#[derive(Debug, Serialize)]
struct Body {
    error: Detail,
}

#[derive(Debug, Serialize)]
struct Detail {
    code: &'static str,
    message: String,
    /// The column in the selector, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: &str) -> Self {
        let error = Detail { code, message: message.to_owned(), position: None };
        Self { status, body: Body { error } }
    }
}

impl From<QueryError> for ApiError {
    fn from(err: QueryError) -> Self {
        let status = match (err.fault(), &err) {
            (_, QueryError::Timeout { .. }) => StatusCode::GATEWAY_TIMEOUT,
            (Fault::Question, _) => StatusCode::BAD_REQUEST,
            (Fault::Nothing, _) => StatusCode::NOT_FOUND,
            (Fault::Cost, _) => StatusCode::UNPROCESSABLE_ENTITY,
            (Fault::Busy, _) => StatusCode::SERVICE_UNAVAILABLE,
            (Fault::Server, _) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message = with_causes(&err);
        if err.fault() == Fault::Server {
            tracing::error!(error = message, "a query failed");
        }
        let error = Detail { code: err.code(), message, position: err.position() };
        Self { status, body: Body { error } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
