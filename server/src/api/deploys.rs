//! Deploys over HTTP.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::{State, rejection::JsonRejection},
};
use everflame_compare::Comparison;
use everflame_profile::Kind;
use serde::{Deserialize, Serialize};

use super::{ApiState, Given, error::ApiError, given, params};
use crate::{
    deploys::{
        grpc::{Asked, MAX_LISTED, announce as note, compare as of_versions},
        record::Announced,
        registry::Deploy,
        spells::Extent,
    },
    query::{
        comparison::{DEFAULT_LENGTH, DEFAULT_WARM_UP, sides::Sides},
        error::QueryError,
        time::now_unix_ns,
    },
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

/// What `GET /api/v1/compare` takes: versions, or two ranges, or neither for the last deploy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CompareParams {
    service: Option<String>,
    kind: Option<String>,
    selector: Option<String>,
    base_version: Option<String>,
    compare_version: Option<String>,
    base_from: Option<String>,
    base_to: Option<String>,
    compare_from: Option<String>,
    compare_to: Option<String>,
    /// Seconds.
    length_s: Option<u64>,
    /// Seconds.
    warm_up_s: Option<u64>,
}

impl CompareParams {
    fn asked(self, now_unix_ns: u64) -> Result<Asked, QueryError> {
        let range = |names: [&'static str; 2], from: &Option<String>, to: &Option<String>| {
            if from.is_none() && to.is_none() {
                return Ok(None);
            }
            params::range(names[0], from.as_deref(), names[1], to.as_deref(), now_unix_ns).map(Some)
        };
        let base = range(["base_from", "base_to"], &self.base_from, &self.base_to)?;
        let compare = range(["compare_from", "compare_to"], &self.compare_from, &self.compare_to)?;
        Ok(Asked {
            service: self.service.unwrap_or_default(),
            kind: self.kind.as_deref().map_or(Ok(Kind::Cpu), str::parse)?,
            selector: self.selector.as_deref().unwrap_or_default().parse()?,
            sides: Sides::of(self.base_version, self.compare_version, base, compare)?,
            length: self.length_s.map_or(DEFAULT_LENGTH, Duration::from_secs),
            warm_up: self.warm_up_s.map_or(DEFAULT_WARM_UP, Duration::from_secs),
        })
    }
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

pub(super) async fn compare(
    State(state): State<ApiState>,
    params: Given<CompareParams>,
) -> Result<Json<Comparison>, ApiError> {
    let asked = given(params)?.asked(now_unix_ns())?;
    Ok(Json(of_versions(&state.deploys, &state.engine, asked).await?))
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
