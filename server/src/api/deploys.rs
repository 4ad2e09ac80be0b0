//! Deploys over HTTP.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{State, rejection::JsonRejection},
};
use serde::{Deserialize, Serialize};

use super::{ApiState, Given, error::ApiError, given, params};
use crate::{
    deploys::{
        grpc::{MAX_LISTED, announce as note},
        record::Announced,
        registry::Deploy,
        spells::Extent,
    },
    query::{error::QueryError, time::now_unix_ns},
};

/// Deploys are fewer than profiles: a week of them is listed.
const DEFAULT_FROM: &str = "-7d";

/// What `GET /api/v1/deploys` takes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParams {
    service: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<String>,
}

/// What `POST /api/v1/deploys` takes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Announcement {
    service: String,
    version: String,
    #[serde(default)]
    commit: String,
    #[serde(default)]
    url: String,
}

/// What that answers.
#[derive(Debug, Serialize)]
pub(super) struct Announcing {
    /// Whether profiles of this version have been seen already.
    seen: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct DeployList {
    deploys: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    service: String,
    version: String,
    previous_version: Option<String>,
    returned: bool,
    #[serde(flatten)]
    extent: Extent,
    hosts: BTreeMap<String, Extent>,
    build_ids: Vec<String>,
    announced: Option<Announced>,
}

impl From<Deploy> for Row {
    fn from(deploy: Deploy) -> Self {
        Self {
            service: deploy.service,
            version: deploy.spell.version,
            previous_version: deploy.previous.map(|spell| spell.version),
            returned: deploy.returned,
            extent: deploy.spell.extent,
            hosts: deploy.spell.hosts,
            build_ids: deploy.spell.build_ids,
            announced: deploy.announced,
        }
    }
}

pub(super) async fn list(
    State(state): State<ApiState>,
    params: Given<ListParams>,
) -> Result<Json<DeployList>, ApiError> {
    let params = given(params)?;
    let (from, to) = (params.from.as_deref().unwrap_or(DEFAULT_FROM), params.to.as_deref());
    let range = params::range("from", Some(from), "to", to, now_unix_ns())?;
    let limit =
        params::limit(params.limit.as_deref())?.map_or(MAX_LISTED, |limit| limit.min(MAX_LISTED));
    let deploys = state.deploys.list(params.service.as_deref(), range, limit);
    Ok(Json(DeployList { deploys: deploys.into_iter().map(Row::from).collect() }))
}

pub(super) async fn announce(
    State(state): State<ApiState>,
    body: Result<Json<Announcement>, JsonRejection>,
) -> Result<Json<Announcing>, ApiError> {
    let Json(Announcement { service, version, commit, url }) =
        body.map_err(|rejection| QueryError::Parameter { message: rejection.body_text() })?;
    let seen = note(&state.deploys, &service, &version, commit, url).await?;
    Ok(Json(Announcing { seen }))
}
