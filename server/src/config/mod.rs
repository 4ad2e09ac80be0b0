//! What can be set, on the command line or in the environment.

pub mod quantity;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use everflame_profile::DecodeLimits;

use self::quantity::{QuantityError, parse_bytes, parse_duration};
use crate::{
    ingest::{validate::BatchLimits, writer::QueueLimits},
    query::engine::QueryLimits,
    store::embedded::EmbeddedOptions,
};

/// The collector of everflame: takes profiles from agents, keeps them, answers queries.
#[derive(Debug, Clone, Parser)]
#[command(name = "everflame-server", version, about, after_help = EXAMPLES)]
pub struct Config {
    /// Where profiles are kept; created when it does not exist.
    #[arg(long, env = "EVERFLAME_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Address for gRPC and HTTP; port 0 takes a free one.
    #[arg(long, env = "EVERFLAME_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:4040")]
    pub listen: SocketAddr,

    /// Delete profiles older than this.
    #[arg(long, env = "EVERFLAME_RETENTION", value_name = "DURATION", default_value = "7d", value_parser = parse_duration)]
    pub retention: Duration,

    /// Delete the oldest profiles when there are more than this; the write-ahead log takes up to 192 MiB on top.
    #[arg(long, env = "EVERFLAME_MAX_DISK_BYTES", value_name = "SIZE", default_value = "20GiB", value_parser = parse_disk_budget)]
    pub max_disk_bytes: u64,

    /// Refuse batches, but answer queries, while less than this is free on the disk.
    #[arg(long, env = "EVERFLAME_MIN_FREE_BYTES", value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    pub min_free_bytes: u64,

    /// How often retention and the disk budget are enforced.
    #[arg(long, env = "EVERFLAME_MAINTENANCE_INTERVAL", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub maintenance_interval: Duration,

    /// Memory for what was read from the store.
    #[arg(long, env = "EVERFLAME_CACHE_BYTES", value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub cache_bytes: u64,

    /// The largest batch that is taken, as sent.
    #[arg(long, env = "EVERFLAME_MAX_BATCH_BYTES", value_name = "SIZE", default_value = "32MiB", value_parser = parse_bytes)]
    pub max_batch_bytes: u64,

    /// The largest batch that is taken, all its profiles decompressed.
    #[arg(long, env = "EVERFLAME_MAX_BATCH_DECOMPRESSED_BYTES", value_name = "SIZE", default_value = "512MiB", value_parser = parse_bytes)]
    pub max_batch_decompressed_bytes: u64,

    /// The largest profile that is taken, as sent.
    #[arg(long, env = "EVERFLAME_MAX_PROFILE_BYTES", value_name = "SIZE", default_value = "8MiB", value_parser = parse_bytes)]
    pub max_profile_bytes: u64,

    /// The largest profile that is taken, decompressed.
    #[arg(long, env = "EVERFLAME_MAX_PROFILE_DECOMPRESSED_BYTES", value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub max_profile_decompressed_bytes: u64,

    /// Batches that may wait to be written; agents are told to slow down beyond.
    #[arg(long, env = "EVERFLAME_MAX_QUEUE_BATCHES", value_name = "N", default_value_t = 1024)]
    pub max_queue_batches: usize,

    /// Compressed profiles that may be under way, from being received to being durable.
    #[arg(long, env = "EVERFLAME_MAX_QUEUE_BYTES", value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub max_queue_bytes: u64,

    /// Profiles that one query may merge.
    #[arg(long, env = "EVERFLAME_MAX_QUERY_PROFILES", value_name = "N", default_value_t = 200_000)]
    pub max_query_profiles: u64,

    /// Memory that the sum of those profiles may take; twice that for a diff.
    #[arg(long, env = "EVERFLAME_MAX_QUERY_BYTES", value_name = "SIZE", default_value = "512MiB", value_parser = parse_bytes)]
    pub max_query_bytes: u64,

    /// Series that one query may list.
    #[arg(long, env = "EVERFLAME_MAX_QUERY_SERIES", value_name = "N", default_value_t = 50_000)]
    pub max_query_series: usize,

    /// How long a query may run.
    #[arg(long, env = "EVERFLAME_QUERY_TIMEOUT", value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub query_timeout: Duration,

    /// Queries that run at the same time; 0 for as many as there are CPUs.
    #[arg(long, env = "EVERFLAME_MAX_CONCURRENT_QUERIES", value_name = "N", default_value_t = 0)]
    pub max_concurrent_queries: usize,

    /// What to log, such as `debug` or `info,everflame_server::store=debug`.
    #[arg(long, env = "EVERFLAME_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

const EXAMPLES: &str = "\
Examples:
  Keep a week of profiles, for this machine only:
    everflame-server --data-dir /var/lib/everflame

  Take profiles from other hosts, keep at most 200 GiB for a month:
    everflame-server --data-dir /data --listen 0.0.0.0:4040 --retention 30d --max-disk-bytes 200GiB

  Is it well, and what does it do?
    curl http://127.0.0.1:4040/healthz
    curl http://127.0.0.1:4040/metrics

  The ten most expensive functions of a service in the last quarter of an hour:
    curl -G http://127.0.0.1:4040/api/v1/top -d from=-15m -d limit=10 \\
      --data-urlencode 'selector={service=\"api\"}'

The address it listens on is printed as `listening on ADDRESS`. There is no authentication yet:
do not expose it to networks that you do not trust.";

impl Config {
    pub(crate) fn store_options(&self) -> EmbeddedOptions {
        EmbeddedOptions {
            retention: self.retention,
            max_disk_bytes: self.max_disk_bytes,
            min_free_bytes: self.min_free_bytes,
            cache_bytes: self.cache_bytes,
        }
    }

    pub(crate) fn batch_limits(&self) -> BatchLimits {
        BatchLimits {
            profile: DecodeLimits {
                max_compressed_bytes: size(self.max_profile_bytes),
                max_decompressed_bytes: size(self.max_profile_decompressed_bytes),
            },
            max_decompressed_bytes: size(self.max_batch_decompressed_bytes),
            retention: self.retention,
        }
    }

    pub(crate) fn queue_limits(&self) -> QueueLimits {
        QueueLimits { max_batches: self.max_queue_batches, max_bytes: self.max_queue_bytes }
    }

    pub(crate) fn query_limits(&self, cpus: usize) -> QueryLimits {
        let max_concurrent =
            if self.max_concurrent_queries == 0 { cpus } else { self.max_concurrent_queries };
        QueryLimits {
            max_profiles: self.max_query_profiles,
            max_merged_bytes: size(self.max_query_bytes),
            max_series: self.max_query_series,
            timeout: self.query_timeout,
            max_concurrent,
        }
    }

    pub(crate) fn max_message_bytes(&self) -> usize {
        size(self.max_batch_bytes)
    }
}

/// An eighth of the budget goes into a partition; with less than this there would be
/// a new one, with files of its own, every few batches.
const MIN_DISK_BYTES: u64 = 64 << 20;

fn parse_disk_budget(text: &str) -> Result<u64, QuantityError> {
    match parse_bytes(text)? {
        bytes if bytes < MIN_DISK_BYTES => {
            Err(QuantityError::TooSmall { min_mib: MIN_DISK_BYTES >> 20 })
        }
        bytes => Ok(bytes),
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn disk_budget_has_a_least_size() {
        assert_eq!(parse_disk_budget("64MiB"), Ok(64 << 20));
        let error = parse_disk_budget("0").unwrap_err();
        assert_eq!(error.to_string(), "the least size is 64MiB");
        assert!(matches!(parse_disk_budget("x"), Err(QuantityError::Size { .. })));
    }

    #[test]
    fn every_flag_can_be_set_in_the_environment() {
        let command = Config::command();
        command.clone().debug_assert();
        for argument in command.get_arguments() {
            let name = argument.get_long().unwrap_or_default();
            let variable = argument.get_env().and_then(|name| name.to_str());
            let expected = format!("EVERFLAME_{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(variable, Some(expected.as_str()), "--{name}");
        }
    }
}
