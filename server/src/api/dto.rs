//! The JSON of answers that are not tables of the profile crate. Dashboards and
//! scripts rely on these names.

use std::collections::BTreeMap;

use everflame_profile::Kind;
use serde::Serialize;

use crate::store::SeriesExtent;

#[derive(Debug, Serialize)]
pub(super) struct Kinds {
    pub(super) kinds: Vec<Kind>,
}

#[derive(Debug, Serialize)]
pub(super) struct LabelNames {
    pub(super) names: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct LabelValues {
    pub(super) values: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct SeriesList {
    series: Vec<Series>,
}

#[derive(Debug, Serialize)]
struct Series {
    kind: Kind,
    labels: BTreeMap<String, String>,
    first_unix_ns: u64,
    last_unix_ns: u64,
    profiles: u64,
}

impl From<Vec<SeriesExtent>> for SeriesList {
    fn from(extents: Vec<SeriesExtent>) -> Self {
        let series = extents.into_iter().map(|extent| Series {
            kind: extent.series.kind,
            labels: extent.series.labels.iter().cloned().collect(),
            first_unix_ns: extent.first_unix_ns,
            last_unix_ns: extent.last_unix_ns,
            profiles: extent.profiles,
        });
        Self { series: series.collect() }
    }
}
