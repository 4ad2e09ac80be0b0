//! The HTTP side: queries as JSON under /api/v1, and what operators look at.
//!
//! | path | answer |
//! | --- | --- |
//! | `/api/v1/kinds` | `{"kinds":[...]}` |
//! | `/api/v1/labels` | `{"names":[...]}` |
//! | `/api/v1/label/{name}/values` | `{"values":[...]}` |
//! | `/api/v1/series` | `{"series":[{"kind","labels":{...},"first_unix_ns","last_unix_ns","profiles"}]}` |
//! | `/api/v1/merge?format=pprof` | a gzip'd pprof profile |
//! | `/api/v1/merge?format=flame` | the JSON of [`everflame_profile::FlameTree`] |
//! | `/api/v1/top` | the JSON of [`everflame_profile::TopTable`] |
//! | `/api/v1/diff` | the JSON of [`everflame_profile::DiffTable`] |
//! | `/api/v1/compare` | the JSON of [`everflame_compare::Comparison`] |
//! | `/api/v1/deploys` | `{"deploys":[...]}`, newest first; POST announces one |
//!
//! Errors are `{"error":{"code","message","position"?}}`.

mod deploys;
mod dto;
mod error;
mod index;
mod operate;
mod params;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use everflame_profile::{DiffTable, TopTable};

use self::{
    dto::{Kinds, LabelNames, LabelValues, SeriesList},
    error::ApiError,
    params::{DiffParams, Format, KindsParams, Params},
};
use crate::{
    deploys::registry::Registry,
    metrics::Metrics,
    query::{
        engine::Engine,
        error::QueryError,
        time::{self},
    },
    store::Store,
};

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct ApiState {
    /// Answers queries.
    pub(crate) engine: Engine,
    /// For `/healthz` and the disk metrics.
    pub(crate) store: Arc<dyn Store>,
    /// Which versions there are.
    pub(crate) deploys: Arc<Registry>,
    /// For `/metrics`.
    pub(crate) metrics: Arc<Metrics>,
}

/// All HTTP routes.
pub(crate) fn router(state: ApiState) -> Router {
    Router::new()
        .route("/", get(index::index))
        .route("/api/v1/kinds", get(kinds))
        .route("/api/v1/labels", get(label_names))
        .route("/api/v1/label/{name}/values", get(label_values))
        .route("/api/v1/series", get(series))
        .route("/api/v1/merge", get(merge))
        .route("/api/v1/top", get(top))
        .route("/api/v1/diff", get(diff))
        .route("/api/v1/compare", get(deploys::compare))
        .route("/api/v1/deploys", get(deploys::list).post(deploys::announce))
        .route("/healthz", get(operate::healthz))
        .route("/metrics", get(operate::metrics))
        .route("/debug/pprof/profile", get(operate::own_profile))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(state)
}

/// What a request gets that no route takes.
pub(crate) async fn not_found() -> Response {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing here; see /")
        .into_response()
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this method is not answered here; see /",
    )
}

type Given<P> = Result<Query<P>, QueryRejection>;

fn given<P>(params: Given<P>) -> Result<P, QueryError> {
    match params {
        Ok(Query(params)) => Ok(params),
        Err(rejection) => Err(QueryError::Parameter { message: rejection.body_text() }),
    }
}

async fn kinds(
    State(state): State<ApiState>,
    params: Given<KindsParams>,
) -> Result<Json<Kinds>, ApiError> {
    let range = given(params)?.range(time::now_unix_ns())?;
    Ok(Json(Kinds { kinds: state.engine.kinds(range).await? }))
}

async fn label_names(
    State(state): State<ApiState>,
    params: Given<Params>,
) -> Result<Json<LabelNames>, ApiError> {
    let selection = given(params)?.selection(time::now_unix_ns())?;
    Ok(Json(LabelNames { names: state.engine.label_names(selection.filter).await? }))
}

async fn label_values(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
    params: Given<Params>,
) -> Result<Json<LabelValues>, ApiError> {
    let Path(name) =
        name.map_err(|rejection| QueryError::Parameter { message: rejection.body_text() })?;
    let selection = given(params)?.selection(time::now_unix_ns())?;
    Ok(Json(LabelValues { values: state.engine.label_values(selection.filter, name).await? }))
}

async fn series(
    State(state): State<ApiState>,
    params: Given<Params>,
) -> Result<Json<SeriesList>, ApiError> {
    let params = given(params)?;
    let selection = params.selection(time::now_unix_ns())?;
    let mut series = state.engine.series(selection.filter).await?;
    if let Some(limit) = params.limit()? {
        series.truncate(limit);
    }
    Ok(Json(SeriesList::from(series)))
}

async fn merge(State(state): State<ApiState>, params: Given<Params>) -> Result<Response, ApiError> {
    let params = given(params)?;
    let selection = params.selection(time::now_unix_ns())?;
    Ok(match params.format()? {
        Format::Flame => Json(state.engine.merge_flame(selection).await?).into_response(),
        Format::Pprof => {
            let disposition =
                format!("attachment; filename=\"{}.pb.gz\"", selection.filter.kind.name());
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
                (header::CONTENT_DISPOSITION, disposition),
            ];
            (headers, state.engine.merge_pprof(selection).await?).into_response()
        }
    })
}

async fn top(
    State(state): State<ApiState>,
    params: Given<Params>,
) -> Result<Json<TopTable>, ApiError> {
    let params = given(params)?;
    let selection = params.selection(time::now_unix_ns())?;
    Ok(Json(state.engine.top(selection, params.limit()?.unwrap_or(0)).await?))
}

async fn diff(
    State(state): State<ApiState>,
    params: Given<DiffParams>,
) -> Result<Json<DiffTable>, ApiError> {
    let params = given(params)?;
    let (base, compare) = params.selections(time::now_unix_ns())?;
    Ok(Json(state.engine.diff(base, compare, params.limit()?.unwrap_or(0)).await?))
}
