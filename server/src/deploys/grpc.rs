//! The Deploys service: translates between messages and the registry.

use std::{sync::Arc, time::Duration};

use everflame_compare::Comparison;
use everflame_profile::Kind;
use everflame_proto::v1::{self, deploys_server};
use tonic::{Request, Response, Status};

use super::{
    record::Announced,
    registry::{Deploy, MAX_SERVICES, Registry},
    spells::Extent,
};
use crate::{
    ingest::labels,
    query::{
        comparison::{
            DEFAULT_LENGTH, DEFAULT_WARM_UP, Wanted,
            sides::{self, Sides},
        },
        engine::Engine,
        error::QueryError,
        grpc::{range, status},
        selector::Selector,
        time::now_unix_ns,
    },
};

/// Deploys that are listed at a time.
pub(crate) const MAX_LISTED: usize = 1_000;

/// Announcements are shown in tables and links.
const MAX_TEXT_BYTES: usize = 1_024;

/// The gRPC side of [`Registry`].
pub(crate) struct DeploysService {
    registry: Arc<Registry>,
    engine: Engine,
}

impl DeploysService {
    pub(crate) fn new(registry: Arc<Registry>, engine: Engine) -> Self {
        Self { registry, engine }
    }
}

#[tonic::async_trait]
impl deploys_server::Deploys for DeploysService {
    async fn list(
        &self,
        request: Request<v1::ListDeploysRequest>,
    ) -> Result<Response<v1::ListDeploysResponse>, Status> {
        let request = request.into_inner();
        let range = range(request.range).map_err(|err| status(&err))?;
        let service = Some(request.service.as_str()).filter(|service| !service.is_empty());
        let limit = match request.limit {
            0 => MAX_LISTED,
            limit => MAX_LISTED.min(limit as usize),
        };
        let deploys = self.registry.list(service, range, limit).into_iter().map(message).collect();
        Ok(Response::new(v1::ListDeploysResponse { deploys }))
    }

    async fn announce(
        &self,
        request: Request<v1::AnnounceDeployRequest>,
    ) -> Result<Response<v1::AnnounceDeployResponse>, Status> {
        let v1::AnnounceDeployRequest { service, version, commit, url } = request.into_inner();
        let seen = announce(&self.registry, &service, &version, commit, url).await;
        Ok(Response::new(v1::AnnounceDeployResponse { seen: seen.map_err(|err| status(&err))? }))
    }

    async fn compare(
        &self,
        request: Request<v1::CompareRequest>,
    ) -> Result<Response<v1::CompareResponse>, Status> {
        let asked = Asked::try_from(request.into_inner()).map_err(|err| status(&err))?;
        let comparison = compare(&self.registry, &self.engine, asked).await;
        let comparison = comparison.map_err(|err| status(&err))?;
        // Fails for maps whose keys are no strings, of which there are none.
        let comparison_json = serde_json::to_vec(&comparison).unwrap_or_default();
        Ok(Response::new(v1::CompareResponse { comparison_json }))
    }
}

/// Compares what was asked for, once it is known when its versions ran.
pub(crate) async fn compare(
    registry: &Registry,
    engine: &Engine,
    asked: Asked,
) -> Result<Comparison, QueryError> {
    let Asked { service, kind, selector, sides, length, warm_up } = asked;
    if service.is_empty() {
        return Err(QueryError::Parameter { message: "service is missing".to_owned() });
    }
    let spells = registry.spells(&service);
    let spells =
        spells.map_err(|alike| QueryError::UnknownService { service: service.clone(), alike })?;
    let length_ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    let (base, compare) = sides::resolve(&service, &spells, &sides, length_ns)?;
    engine.compare(Wanted { service, kind, selector, base, compare, warm_up }).await
}

/// A comparison that is asked for, by versions.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) service: String,
    pub(crate) kind: Kind,
    pub(crate) selector: Selector,
    pub(crate) sides: Sides,
    /// How much of each version's time.
    pub(crate) length: Duration,
    pub(crate) warm_up: Duration,
}

impl TryFrom<v1::CompareRequest> for Asked {
    type Error = QueryError;

    fn try_from(request: v1::CompareRequest) -> Result<Self, QueryError> {
        let v1::CompareRequest { base_version, compare_version, base_range, compare_range, .. } =
            request;
        let given = |version: String| Some(version).filter(|version| !version.is_empty());
        let range_of =
            |given: Option<v1::TimeRange>| given.map(|given| range(Some(given))).transpose();
        let sides = Sides::of(
            given(base_version),
            given(compare_version),
            range_of(base_range)?,
            range_of(compare_range)?,
        )?;
        let length = match request.length_ns {
            0 => DEFAULT_LENGTH,
            length_ns => Duration::from_nanos(length_ns),
        };
        Ok(Self {
            service: request.service,
            kind: if request.kind.is_empty() { Kind::Cpu } else { request.kind.parse()? },
            selector: request.selector.parse()?,
            sides,
            length,
            warm_up: request.warm_up_ns.map_or(DEFAULT_WARM_UP, Duration::from_nanos),
        })
    }
}

/// Notes an announcement. Whether the version has been seen.
pub(crate) async fn announce(
    registry: &Arc<Registry>,
    service: &str,
    version: &str,
    commit: String,
    url: String,
) -> Result<bool, QueryError> {
    for (name, value) in [("service", service), ("version", version)] {
        if value.is_empty() {
            return Err(QueryError::Parameter { message: format!("{name} is missing") });
        }
        labels::check_value(name, value)
            .map_err(|err| QueryError::Parameter { message: err.to_string() })?;
    }
    for (name, value) in [("commit", &commit), ("url", &url)] {
        if value.len() > MAX_TEXT_BYTES || value.chars().any(char::is_control) {
            let message =
                format!("{name} is longer than {MAX_TEXT_BYTES} bytes or has control characters");
            return Err(QueryError::Parameter { message });
        }
    }
    if !(url.is_empty() || url.starts_with("https://") || url.starts_with("http://")) {
        let message = format!("url {url:?} begins with neither https:// nor http://");
        return Err(QueryError::Parameter { message });
    }
    let announced = Announced { commit, url, announced_unix_ns: now_unix_ns() };
    let (registry, service, version) =
        (Arc::clone(registry), service.to_owned(), version.to_owned());
    let noted =
        tokio::task::spawn_blocking(move || registry.announce(&service, &version, announced)).await;
    let seen = noted.map_err(|source| QueryError::Crashed { source })??;
    seen.ok_or(QueryError::TooManyServices { limit: MAX_SERVICES })
}

/// A deploy as it is sent.
pub(crate) fn message(deploy: Deploy) -> v1::Deploy {
    let signed = |ns| i64::try_from(ns).unwrap_or(i64::MAX);
    let host = |(name, extent): (String, Extent)| v1::DeployHost {
        name,
        first_unix_ns: signed(extent.first_unix_ns),
        last_unix_ns: signed(extent.last_unix_ns),
    };
    let Extent { first_unix_ns, last_unix_ns } = deploy.spell.extent;
    v1::Deploy {
        service: deploy.service,
        version: deploy.spell.version,
        first_unix_ns: signed(first_unix_ns),
        last_unix_ns: signed(last_unix_ns),
        hosts: deploy.spell.hosts.into_iter().map(host).collect(),
        build_ids: deploy.spell.build_ids,
        previous_version: deploy.previous.map(|spell| spell.version).unwrap_or_default(),
        returned: deploy.returned,
        announcement: deploy.announced.map(|announced| v1::Announcement {
            commit: announced.commit,
            url: announced.url,
            announced_unix_ns: signed(announced.announced_unix_ns),
        }),
    }
}
