//! Delivery of finished windows to the collector, at least once and never blocking.
//!
//! `submit` puts a batch into the [`Spool`] and returns; a thread of its own streams
//! what is spooled to the collector and forgets a batch only when the collector has
//! acknowledged it. So the rest of the agent neither waits for the network nor knows
//! whether there is one.

mod client;
mod retry;
mod split;
mod spool;
mod spool_file;
mod spool_index;
mod throttle;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use everflame_proto::v1::Batch;
use tokio::sync::{Notify, watch};
use tonic::transport::Endpoint;
use tracing::{info, warn};
/// Identifies a batch to the collector: a version 7 UUID, so that ids sort by age.
pub use uuid::Uuid as BatchId;

use self::client::Client;
pub use self::split::{Split, split};
pub use self::spool::{Spool, SpoolError};
use crate::health::Health;
use crate::http::HttpEndpoint;
use crate::metrics::{Metrics, ReasonLabels};

/// A collector that does not even accept a connection is not worth more of a wait.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How to deliver. [`ExportConfig::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// The collector, such as `http://127.0.0.1:4040`. Without one, batches stay in the
    /// spool for an agent that has one.
    pub server: Option<String>,
    /// Where batches wait; made if need be, used by one agent at a time.
    pub spool_dir: PathBuf,
    /// The budget of the spool.
    pub spool_max_bytes: u64,
    /// The largest batch that the collector accepts; larger ones are split.
    pub max_batch_bytes: usize,
    /// How many batches may wait for their acknowledgement.
    pub max_in_flight: usize,
    /// How long an acknowledgement may take before the stream is given up.
    pub ack_timeout: Duration,
    /// The first and the longest wait between attempts to reach the collector.
    pub backoff: (Duration, Duration),
}

impl ExportConfig {
    /// The defaults: 256 MiB of spool, batches up to 4 MiB (gRPC's customary limit), 8
    /// in flight, 30 s for an acknowledgement, 250 ms to 30 s between attempts.
    pub fn new(server: Option<String>, spool_dir: PathBuf) -> Self {
        Self {
            server,
            spool_dir,
            spool_max_bytes: 256 << 20,
            max_batch_bytes: 4 << 20,
            max_in_flight: 8,
            ack_timeout: Duration::from_secs(30),
            backoff: (Duration::from_millis(250), Duration::from_secs(30)),
        }
    }
}

/// Why export cannot start. A collector that cannot be reached is no reason.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The collector's address is not one.
    #[error("`{server}` is not the address of a collector; it looks like http://HOST:4040")]
    Address {
        /// What was given.
        server: String,
        /// What is wrong with it, unless it is only incomplete.
        source: Option<tonic::transport::Error>,
    },
    /// The collector's address asks for TLS.
    #[error("cannot connect to `{server}`: TLS is not supported yet, use http://HOST:4040")]
    Tls {
        /// What was given.
        server: String,
    },
    /// The thread or its event loop cannot be made.
    #[error("cannot start the export thread")]
    Thread {
        /// What the kernel said.
        source: io::Error,
    },
}

/// A running export thread. Dropping it stops export at once; what is not delivered
/// stays in the spool.
#[derive(Debug)]
pub struct Exporter {
    spool: Arc<Spool>,
    max_batch_bytes: usize,
    metrics: Arc<Metrics>,
    spooled: Arc<Notify>,
    stop: watch::Sender<Option<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// The name of the thread, as `health` knows it.
    pub const THREAD: &str = "export";

    /// Opens the spool and starts the thread, which serves `http` as well.
    ///
    /// # Errors
    /// When the spool or the address cannot be used; see [`ExportError`].
    pub fn spawn(
        config: ExportConfig,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        http: Option<HttpEndpoint>,
    ) -> Result<Self, ExportError> {
        let endpoint = config.server.as_deref().map(endpoint).transpose()?;
        let spool =
            Arc::new(Spool::open(&config.spool_dir, config.spool_max_bytes, metrics.clone())?);
        let spooled = Arc::new(Notify::new());
        let (stop, stopped) = watch::channel(None);
        let max_batch_bytes = config.max_batch_bytes;
        let client = endpoint.map(|endpoint| Client {
            endpoint,
            spool: Arc::clone(&spool),
            spooled: Arc::clone(&spooled),
            stopped: stopped.clone(),
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            config,
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| ExportError::Thread { source })?;
        let heart = health.watch(Self::THREAD);
        let thread = thread::Builder::new()
            .name(Self::THREAD.into())
            .spawn(move || {
                let _heart = heart;
                runtime.block_on(run(client, http, stopped));
                // A profile of the agent itself may be in the making; nobody waits for it.
                runtime.shutdown_background();
            })
            .map_err(|source| ExportError::Thread { source })?;
        Ok(Self { spool, max_batch_bytes, metrics, spooled, stop, thread: Some(thread) })
    }

    /// Spools a batch for delivery, split where the collector would refuse its size. To
    /// be called from a thread, since it writes to disk. It never fails: losses are
    /// counted. A batch without an id gets one.
    pub fn submit(&self, batch: Batch) {
        let split = split(batch, self.max_batch_bytes);
        for profile in &split.too_large {
            let reason = ReasonLabels { reason: "too_large" };
            self.metrics.dropped_profiles.get_or_create(&reason).inc();
            warn!(
                kind = profile.kind,
                bytes = profile.pprof_gz.len(),
                limit = self.max_batch_bytes,
                "a profile is larger than a batch may be and is dropped"
            );
        }
        for batch in split.batches {
            self.spool.push(batch);
        }
        self.spooled.notify_one();
    }

    /// What waits for the collector.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Tells the thread to deliver what is spooled, for at most `timeout`, and to end.
    pub fn finish(&self, timeout: Duration) {
        self.stop.send_replace(Some(timeout));
    }

    /// Delivers what is spooled, for at most `timeout`, and ends the thread. Returns how
    /// many batches are left in the spool for the next start. With a collector that
    /// cannot be reached it returns at once.
    pub fn shutdown(mut self, timeout: Duration) -> usize {
        self.stop(timeout);
        let left = self.spool.len();
        if left > 0 {
            info!(batches = left, "undelivered batches stay in the spool for the next start");
        }
        left
    }

    fn stop(&mut self, timeout: Duration) {
        self.finish(timeout);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the export thread had panicked; its batches are still in the spool");
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop(Duration::ZERO);
        }
    }
}

/// The life of the export thread.
async fn run(
    client: Option<Client>,
    http: Option<HttpEndpoint>,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    if let Some(http) = http {
        tokio::spawn(http.serve());
    }
    let stopped = async {
        // The sender lives until the thread has been joined.
        stopped.wait_for(Option::is_some).await.ok().and_then(|stop| *stop).unwrap_or_default()
    };
    match client {
        Some(client) => tokio::select! {
            () = client.run() => {}
            () = async { tokio::time::sleep(stopped.await).await } => {}
        },
        None => {
            stopped.await;
        }
    }
}

/// Whether this can be the address of a collector, which need not be there.
///
/// # Errors
/// What is wrong with it: [`ExportError::Address`] or [`ExportError::Tls`].
pub fn check_address(server: &str) -> Result<(), ExportError> {
    endpoint(server).map(drop)
}

fn endpoint(server: &str) -> Result<Endpoint, ExportError> {
    let not_an_address = |source| ExportError::Address { server: server.to_owned(), source };
    let endpoint =
        Endpoint::from_shared(server.to_owned()).map_err(|source| not_an_address(Some(source)))?;
    match endpoint.uri().scheme_str() {
        Some("http") => Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true)),
        Some("https") => Err(ExportError::Tls { server: server.to_owned() }),
        _ => Err(not_an_address(None)),
    }
}

#[cfg(test)]
mod tests {
    fn check_address(server: &str, expected: Result<(), &str>) {
        let actual = super::check_address(server).map_err(|error| error.to_string());
        match expected {
            Ok(()) => assert_eq!(actual, Ok(()), "{server}"),
            Err(part) => assert!(actual.as_ref().is_err_and(|e| e.contains(part)), "{actual:?}"),
        }
    }

    #[test]
    fn addresses_that_cannot_be_a_collector_are_refused_with_an_example() {
        check_address("http://127.0.0.1:4040", Ok(()));
        check_address("http://collector.example:80/", Ok(()));
        check_address("https://collector.example", Err("TLS is not supported yet"));
        check_address("127.0.0.1:4040", Err("looks like http://HOST:4040"));
        check_address("collector:4040", Err("looks like http://HOST:4040"));
        check_address("", Err("looks like http://HOST:4040"));
        check_address("http://a b", Err("looks like http://HOST:4040"));
    }
}
