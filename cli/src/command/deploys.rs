//! `everflame deploys` and `everflame deploy announce`: versions of services, and since when they run.

use everflame_proto::v1::{AnnounceDeployRequest, Deploy, ListDeploysRequest};
use serde::Serialize;

use super::{json, range_of};
use crate::args::{AnnounceArgs, DeployArgs, DeployCommand, DeploysArgs, RangeArgs};
use crate::collector::{Collector, time_range};
use crate::failure::Failure;
use crate::format::Format;
use crate::output::Destination;
use crate::table::{Table, terminal_width};
use crate::when::{now_unix_ns, rfc3339};

pub(crate) const FORMATS: &[Format] = &[Format::Table, Format::Json];

/// Deploys are fewer than profiles: a week of them is shown.
const DEFAULT_RANGE_NS: i64 = 7 * 86_400 * 1_000_000_000;

/// A version whose last window ended this long before now has most likely gone.
const RUNNING_NS: i64 = 120 * 1_000_000_000;

pub(crate) fn run(args: DeploysArgs) -> Result<(), Failure> {
    let output = args.output.as_deref();
    let format = Format::choose(args.format, output, FORMATS)?;
    let destination = Destination::new(output, false)?;
    let now = now_unix_ns();
    let range = range_of(&RangeArgs { from: args.from, to: args.to }, DEFAULT_RANGE_NS, now)?;
    let request = ListDeploysRequest {
        service: args.service.clone().unwrap_or_default(),
        range: Some(time_range(range)),
        limit: args.limit,
    };
    let deploys = Collector::connect(&args.server.server)?.deploys(request)?;
    if deploys.is_empty() {
        if format == Format::Json {
            destination.write(&json(&Vec::<Row<'_>>::new()))?;
        }
        let of = args.service.map_or_else(String::new, |service| format!(" of {service}"));
        let message =
            format!("no deploy{of} began {range}; `everflame services` shows what has profiles");
        return Err(Failure::NoData { message });
    }
    let bytes = match format {
        Format::Json => json(&deploys.iter().map(Row::of).collect::<Vec<_>>()),
        _ => text(&deploys, now, terminal_width().filter(|_| output.is_none())).into_bytes(),
    };
    Ok(destination.write(&bytes)?)
}

pub(crate) fn run_deploy(args: DeployArgs) -> Result<(), Failure> {
    match args.command {
        DeployCommand::Announce(args) => announce(args),
    }
}

fn announce(args: AnnounceArgs) -> Result<(), Failure> {
    let AnnounceArgs { service, version, commit, url, server } = args;
    let request =
        AnnounceDeployRequest { service: service.clone(), version: version.clone(), commit, url };
    let is_seen = Collector::connect(&server.server)?.announce(request)?;
    let state = if is_seen { "has been seen" } else { "has not been seen yet" };
    let text = format!("noted; {version} of {service} {state}\n");
    Ok(Destination::new(None, false)?.write(text.as_bytes())?)
}

/// A deploy in JSON; scripts rely on the names.
#[derive(Serialize)]
struct Row<'a> {
    service: &'a str,
    version: &'a str,
    previous_version: Option<&'a str>,
    returned: bool,
    first_unix_ns: i64,
    last_unix_ns: i64,
    hosts: Vec<Host<'a>>,
    build_ids: &'a [String],
    commit: Option<&'a str>,
    url: Option<&'a str>,
    announced_unix_ns: Option<i64>,
}

#[derive(Serialize)]
struct Host<'a> {
    name: &'a str,
    first_unix_ns: i64,
    last_unix_ns: i64,
}

impl<'a> Row<'a> {
    fn of(deploy: &'a Deploy) -> Self {
        let some = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        let announcement = deploy.announcement.as_ref();
        Self {
            service: &deploy.service,
            version: &deploy.version,
            previous_version: some(&deploy.previous_version),
            returned: deploy.returned,
            first_unix_ns: deploy.first_unix_ns,
            last_unix_ns: deploy.last_unix_ns,
            hosts: deploy
                .hosts
                .iter()
                .map(|host| Host {
                    name: &host.name,
                    first_unix_ns: host.first_unix_ns,
                    last_unix_ns: host.last_unix_ns,
                })
                .collect(),
            build_ids: &deploy.build_ids,
            commit: announcement.and_then(|announcement| some(&announcement.commit)),
            url: announcement.and_then(|announcement| some(&announcement.url)),
            announced_unix_ns: announcement.map(|announcement| announcement.announced_unix_ns),
        }
    }
}

fn text(deploys: &[Deploy], now_unix_ns: i64, width: Option<usize>) -> String {
    let mut rows =
        Table::new(&["<SERVICE", "<VERSION", "<BEFORE", "<SINCE", "<UNTIL", "HOSTS", "<COMMIT"]);
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    for deploy in deploys {
        let is_running = deploy.last_unix_ns.saturating_add(RUNNING_NS) >= now_unix_ns;
        let until = if is_running { "now".to_owned() } else { rfc3339(deploy.last_unix_ns) };
        let again = if deploy.returned { " (again)" } else { "" };
        rows.row(vec![
            or_dash(&deploy.service),
            format!("{}{again}", or_dash(&deploy.version)),
            or_dash(&deploy.previous_version),
            rfc3339(deploy.first_unix_ns),
            until,
            deploy.hosts.len().to_string(),
            or_dash(deploy.announcement.as_ref().map_or("", |announcement| &announcement.commit)),
        ]);
    }
    rows.render(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_come_back_are_marked() {
        let deploy = Deploy {
            service: "api".to_owned(),
            version: "v1".to_owned(),
            previous_version: "v2".to_owned(),
            returned: true,
            last_unix_ns: 100,
            ..Deploy::default()
        };
        let shown = text(&[deploy], 200, None);
        assert!(shown.contains("v1 (again)") && shown.contains("now"), "{shown}");
    }
}
