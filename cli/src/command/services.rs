//! `everflame services`: which services and versions have profiles.

use std::collections::{BTreeMap, BTreeSet};

use everflame_proto::v1::Series;
use serde::Serialize;

use super::{json, range};
use crate::args::ServicesArgs;
use crate::collector::{Collector, selection};
use crate::failure::Failure;
use crate::format::Format;
use crate::output::Destination;
use crate::table::{Table, terminal_width};
use crate::units::grouped;
use crate::when::{now_unix_ns, rfc3339};

pub(crate) const FORMATS: &[Format] = &[Format::Table, Format::Json];

/// What is known of a version of a service. The names are those of the JSON output.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Service {
    service: String,
    version: String,
    kinds: BTreeSet<String>,
    hosts: BTreeSet<String>,
    profiles: u64,
    first_unix_ns: i64,
    last_unix_ns: i64,
}

pub(crate) fn run(args: ServicesArgs) -> Result<(), Failure> {
    let output = args.output.as_deref();
    let format = Format::choose(args.format, output, FORMATS)?;
    let destination = Destination::new(output, false)?;
    let range = range(&args.range, now_unix_ns())?;
    let mut collector = Collector::connect(&args.server)?;
    let kinds = match args.kind {
        Some(kind) => vec![kind.name().to_owned()],
        None => collector.kinds(range)?,
    };
    let mut series = Vec::new();
    for kind in kinds {
        series.extend(collector.series(selection(&kind, &args.selector, range, None))?);
    }

    let services = group(series);
    if services.is_empty() {
        if format == Format::Json {
            destination.write(&json(&services))?;
        }
        let selector = if args.selector.is_empty() { "{}" } else { &args.selector };
        let message =
            format!("no profiles of {selector} {range}; is an agent sending to {}?", args.server);
        return Err(Failure::NoData { message });
    }
    let bytes = match format {
        Format::Json => json(&services),
        _ => text(&services, terminal_width().filter(|_| output.is_none())).into_bytes(),
    };
    Ok(destination.write(&bytes)?)
}

/// Sums the series of each version of a service; those that were seen last come first
/// among the versions.
fn group(series: Vec<Series>) -> Vec<Service> {
    let mut services: BTreeMap<(String, String), Service> = BTreeMap::new();
    for series in series {
        let label = |wanted: &str| {
            let label = series.labels.iter().find(|label| label.name == wanted);
            label.map_or_else(String::new, |label| label.value.clone())
        };
        let (service, version) = (label("service"), label("version"));
        let known = services.entry((service.clone(), version.clone())).or_insert_with(|| Service {
            service,
            version,
            first_unix_ns: i64::MAX,
            last_unix_ns: i64::MIN,
            ..Service::default()
        });
        known.hosts.extend(Some(label("host")).filter(|host| !host.is_empty()));
        known.kinds.insert(series.kind);
        known.profiles = known.profiles.saturating_add(series.profiles);
        known.first_unix_ns = known.first_unix_ns.min(series.first_unix_ns);
        known.last_unix_ns = known.last_unix_ns.max(series.last_unix_ns);
    }
    let mut services: Vec<Service> = services.into_values().collect();
    services.sort_by(|a, b| a.service.cmp(&b.service).then(b.last_unix_ns.cmp(&a.last_unix_ns)));
    services
}

fn text(services: &[Service], width: Option<usize>) -> String {
    let mut rows =
        Table::new(&["<SERVICE", "<VERSION", "HOSTS", "PROFILES", "<FIRST", "<LAST", "<KINDS"]);
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    for service in services {
        rows.row(vec![
            or_dash(&service.service),
            or_dash(&service.version),
            service.hosts.len().to_string(),
            grouped(i64::try_from(service.profiles).unwrap_or(i64::MAX)),
            rfc3339(service.first_unix_ns),
            rfc3339(service.last_unix_ns),
            service.kinds.iter().cloned().collect::<Vec<_>>().join(","),
        ]);
    }
    rows.render(width)
}

#[cfg(test)]
mod tests {
    use everflame_proto::v1::Label;

    use super::*;

    fn series(labels: &[(&str, &str)], kind: &str, first: i64, last: i64) -> Series {
        let label = |(name, value): &(&str, &str)| Label {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        Series {
            kind: kind.to_owned(),
            labels: labels.iter().map(label).collect(),
            first_unix_ns: first,
            last_unix_ns: last,
            profiles: 2,
        }
    }

    #[test]
    fn series_sum_to_versions_with_the_newest_first() {
        let services = group(vec![
            series(&[("service", "api"), ("version", "v1"), ("host", "a")], "cpu", 5, 9),
            series(&[("service", "api"), ("version", "v2"), ("host", "a")], "cpu", 10, 20),
            series(&[("service", "api"), ("version", "v1"), ("host", "b")], "lock", 3, 8),
            series(&[], "cpu", 1, 2),
        ]);
        let rows: Vec<_> = services
            .iter()
            .map(|s| (s.service.as_str(), s.version.as_str(), s.hosts.len(), s.profiles))
            .collect();
        assert_eq!(rows, [("", "", 0, 2), ("api", "v2", 1, 2), ("api", "v1", 2, 4)]);
        assert_eq!((services[2].first_unix_ns, services[2].last_unix_ns), (3, 9));
        assert!(text(&services, None).contains("-        -"), "{}", text(&services, None));
    }
}
