//! The client side of `everflame.v1.Ingest/Push`: what is sent when, and what an
//! acknowledgement means.
//!
//! One stream at a time. The batch to send next is always the oldest one in the spool
//! that is not in flight; so order, retries and resending after a lost stream all
//! follow from the spool, and there is no second queue to keep in step with it.

use std::sync::Arc;
use std::time::Duration;

use everflame_proto::v1::ingest_client::IngestClient;
use everflame_proto::v1::{Batch, BatchAck, Outcome};
use prost::Message;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::retry::Backoff;
use super::spool::Spool;
use super::throttle::Throttle;
use super::{BatchId, ExportConfig};
use crate::health::Health;
use crate::metrics::{CodeLabels, Metrics, OutcomeLabels, ReasonLabels};

/// What a collector may ask for with RETRY is taken within these bounds.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));

/// Everything that the delivery task needs.
pub(super) struct Client {
    pub(super) endpoint: Endpoint,
    pub(super) spool: Arc<Spool>,
    /// Notified when something was spooled.
    pub(super) spooled: Arc<Notify>,
    /// Some when the agent is ending: deliver what there is and return.
    pub(super) stopped: watch::Receiver<Option<Duration>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) config: ExportConfig,
}

/// Why a stream ended although there may be more to send.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("cannot reach the collector")]
    Unreachable { source: tonic::transport::Error },
    #[error("the collector ended the stream")]
    Refused { source: Box<Status> },
    #[error("the collector closed the stream")]
    Closed,
    #[error("the collector did not acknowledge a batch within {} s", timeout.as_secs())]
    AckTimeout { timeout: Duration },
}

impl StreamError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Refused { source } => code_name(source.code()),
            Self::Closed => "closed",
            Self::AckTimeout { .. } => "ack_timeout",
        }
    }

    /// Whether the collector ended the stream because of what a batch is, so that
    /// sending the batch again would end every stream to come.
    fn blames_a_batch(&self) -> bool {
        matches!(self, Self::Refused { source }
            if matches!(source.code(), Code::InvalidArgument | Code::OutOfRange))
    }
}

/// Batches that were sent on the current stream and not answered yet, oldest first.
#[derive(Debug, Default)]
struct InFlight(Vec<(BatchId, Instant)>);

impl InFlight {
    fn contains(&self, id: &BatchId) -> bool {
        self.0.iter().any(|(in_flight, _)| in_flight == id)
    }

    fn remove(&mut self, id: &BatchId) -> bool {
        let before = self.0.len();
        self.0.retain(|(in_flight, _)| in_flight != id);
        self.0.len() < before
    }
}

/// What has to be known across streams.
#[derive(Debug, Default)]
struct Progress {
    in_flight: InFlight,
    /// Whether the current stream has acknowledged anything.
    acknowledged: bool,
    /// While more than 0, batches are sent one at a time, to find the one that the
    /// collector cannot take; each acknowledgement lowers it.
    one_at_a_time: usize,
    /// No sending before this: the collector asked for patience.
    paused_until: Option<Instant>,
}

impl Client {
    /// Delivers until the agent ends and the spool is empty or the collector is gone.
    pub(super) async fn run(mut self) {
        let (first, cap) = self.config.backoff;
        let mut backoff = Backoff::new(first, cap);
        let mut progress = Progress::default();
        let trouble = Throttle::default();
        loop {
            let result = self.stream(&mut progress).await;
            self.metrics.export_connected.set(0);
            self.health.set_collector_connected(false);
            let Err(error) = result else { return };

            self.metrics
                .export_stream_failures
                .get_or_create(&CodeLabels { code: error.code() })
                .inc();
            self.metrics.export_retries.inc_by(progress.in_flight.0.len() as u64);
            if trouble.allow() {
                warn!(error = &error as &dyn std::error::Error, server = %self.endpoint.uri(),
                    spooled = self.spool.len(), "export is interrupted; profiling goes on, batches \
                    are spooled, and the collector is tried again");
            } else {
                debug!(error = &error as &dyn std::error::Error, "export is interrupted");
            }
            if error.blames_a_batch() {
                self.isolate_culprit(&mut progress);
            }
            if self.is_stopped() {
                return;
            }
            if std::mem::take(&mut progress.acknowledged) {
                backoff.reset();
            }
            progress.in_flight = InFlight::default();
            tokio::select! {
                () = sleep(backoff.next_wait()) => {}
                // One more attempt, at once, before the agent ends.
                _ = self.stopped.changed() => {}
            }
        }
    }

    /// One stream, from connecting to its end. Ok when the agent is ending and
    /// everything was delivered.
    async fn stream(&mut self, progress: &mut Progress) -> Result<(), StreamError> {
        // A fresh connection each time: a new lookup of the name, and no chance to
        // inherit a connection that is dead without knowing it.
        let channel =
            self.endpoint.connect().await.map_err(|source| StreamError::Unreachable { source })?;
        debug!(server = %self.endpoint.uri(), spooled = self.spool.len(), "connected");

        // Never full: there are at most max_in_flight batches in it.
        let (outbound, batches) = mpsc::channel(self.config.max_in_flight.max(1));
        let (ack_sender, mut acks) = mpsc::channel(self.config.max_in_flight.max(1));
        let opened = {
            let (metrics, health) = (Arc::clone(&self.metrics), Arc::clone(&self.health));
            move || {
                metrics.export_connected.set(1);
                health.set_collector_connected(true);
            }
        };
        let receive = receive(channel, batches, ack_sender, opened);
        tokio::pin!(receive);
        loop {
            // Asked first: what is spooled before the end is then seen by what follows.
            let stopping = self.is_stopped();
            self.send(progress, &outbound);
            if outbound.is_closed() && progress.in_flight.0.is_empty() {
                return Err(StreamError::Closed);
            }
            // With nothing in flight and no pause, what is left cannot be read at present.
            let idle = progress.in_flight.0.is_empty() && progress.paused_until.is_none();
            if stopping && (idle || self.spool.is_empty()) {
                return Ok(());
            }
            let wake_at = self.wake_at(progress);
            tokio::select! {
                // Acknowledgements first: those that came before the end of a stream count.
                biased;
                Some(ack) = acks.recv() => self.acknowledge(progress, &ack),
                result = &mut receive => {
                    while let Ok(ack) = acks.try_recv() {
                        self.acknowledge(progress, &ack);
                    }
                    return Err(match result {
                        Ok(()) => StreamError::Closed,
                        Err(status) => StreamError::Refused { source: Box::new(status) },
                    });
                }
                () = sleep_until(wake_at) => self.check_timeout(progress)?,
                () = self.spooled.notified() => {}
                _ = self.stopped.changed(), if !stopping => {}
            }
        }
    }

    /// Sends as many of the oldest batches as may be in flight.
    fn send(&self, progress: &mut Progress, outbound: &mpsc::Sender<Batch>) {
        if progress.paused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        progress.paused_until = None;
        let limit = if progress.one_at_a_time > 0 { 1 } else { self.config.max_in_flight.max(1) };
        while progress.in_flight.0.len() < limit {
            // Reads from a local disk, on a thread that has nothing better to do.
            let Some((id, batch)) = self.spool.oldest(|id| progress.in_flight.contains(id)) else {
                return;
            };
            let bytes = batch.encoded_len() as u64;
            if outbound.try_send(batch).is_err() {
                // The stream is ending; its reader says why.
                return;
            }
            self.metrics.export_bytes.inc_by(bytes);
            progress.in_flight.0.push((id, Instant::now()));
        }
    }

    /// When something has to be done although nothing happens.
    fn wake_at(&self, progress: &Progress) -> Instant {
        let oldest = progress.in_flight.0.first().map(|(_, sent)| *sent + self.config.ack_timeout);
        let retry = self.spool.next_retry().map(Instant::from_std);
        let wake_at = oldest.into_iter().chain(progress.paused_until).chain(retry).min();
        wake_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    fn check_timeout(&self, progress: &Progress) -> Result<(), StreamError> {
        let timeout = self.config.ack_timeout;
        match progress.in_flight.0.first() {
            Some((_, sent)) if sent.elapsed() >= timeout => {
                Err(StreamError::AckTimeout { timeout })
            }
            _ => Ok(()),
        }
    }

    fn acknowledge(&self, progress: &mut Progress, ack: &BatchAck) {
        let known = BatchId::from_slice(&ack.batch_id).ok();
        let Some(id) = known.filter(|id| progress.in_flight.remove(id)) else {
            debug!(?ack, "an acknowledgement of a batch that is not in flight");
            return;
        };
        if !std::mem::replace(&mut progress.acknowledged, true) {
            info!(server = %self.endpoint.uri(), spooled = self.spool.len(),
                "the collector takes batches");
        }
        progress.one_at_a_time = progress.one_at_a_time.saturating_sub(1);
        let outcome = match ack.outcome() {
            Outcome::Stored => "stored",
            Outcome::Duplicate => "duplicate",
            Outcome::Rejected => {
                warn!(%id, reason = ack.message, "the collector rejects a batch; it is dropped");
                "rejected"
            }
            // An outcome that this agent does not know is a promise it cannot rely on.
            Outcome::Retry | Outcome::Unspecified => {
                let asked = Duration::from_millis(ack.retry_after_ms.into());
                let wait = asked.clamp(RETRY_AFTER.0, RETRY_AFTER.1);
                debug!(%id, ?wait, reason = ack.message, "the collector asks to slow down");
                let until = Instant::now() + wait;
                progress.paused_until = progress.paused_until.max(Some(until));
                self.metrics.export_retries.inc();
                "retry"
            }
        };
        self.metrics.export_batches.get_or_create(&OutcomeLabels { outcome }).inc();
        if outcome == "retry" {
            return;
        }
        self.spool.acknowledge(&id);
        self.health.acknowledged();
        if let Some(first) = ack.rejected.first() {
            let labels = ReasonLabels { reason: "rejected" };
            let count = ack.rejected.len() as u64;
            self.metrics.dropped_profiles.get_or_create(&labels).inc_by(count);
            warn!(%id, profiles = count, reason = first.reason,
                "the collector rejects profiles of a batch");
        }
    }

    /// A stream ended because of one of the batches in flight. With several, the next
    /// streams carry one at a time; with one, it is the culprit and is dropped.
    fn isolate_culprit(&self, progress: &mut Progress) {
        if let [(id, _)] = progress.in_flight.0[..] {
            warn!(%id, "the collector cannot take a batch; it is dropped");
            self.spool.acknowledge(&id);
            let labels = OutcomeLabels { outcome: "rejected" };
            self.metrics.export_batches.get_or_create(&labels).inc();
            progress.in_flight = InFlight::default();
        } else {
            progress.one_at_a_time = progress.in_flight.0.len();
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.borrow().is_some()
    }
}

/// Opens the stream, says so, and hands on acknowledgements until it ends.
async fn receive(
    channel: Channel,
    batches: mpsc::Receiver<Batch>,
    acks: mpsc::Sender<BatchAck>,
    opened: impl FnOnce(),
) -> Result<(), Status> {
    let response = IngestClient::new(channel).push(ReceiverStream::new(batches)).await?;
    opened();
    let mut inbound = response.into_inner();
    while let Some(ack) = inbound.message().await? {
        if acks.send(ack).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// The name of a status code as in the gRPC specification, in lower case.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
