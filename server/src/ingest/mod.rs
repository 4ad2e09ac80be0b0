//! From a batch on the wire to an acknowledgement.
//!
//! check room -> reserve memory -> validate (on a blocking thread) -> queue -> group commit -> take notice of
//! versions -> acknowledge.
//! The invariant: STORED and DUPLICATE are said only of what is durable, and every
//! batch gets exactly one answer.

pub mod grpc;
pub mod labels;
pub mod validate;
pub mod wire;
pub mod writer;

use std::sync::Arc;

use everflame_proto::v1;
use tokio::{sync::Semaphore, task};

use crate::{
    causes::with_causes,
    deploys::registry::{Registry, Sighting},
    metrics::{BatchOutcome, Metrics},
    query::time,
    store::{Committed, Store, StoreError, ValidBatch},
};

use self::{
    validate::{BatchLimits, Refused, validate},
    writer::{Reservation, SubmitError, Writer},
};

/// How long a sender is asked to wait when the queue is full.
const QUEUE_FULL_RETRY_MS: u32 = 1_000;
/// How long a sender is asked to wait when the store has failed.
const STORE_FAILED_RETRY_MS: u32 = 5_000;

/// A reason may quote what was sent; longer ones are cut.
const MAX_REASON_BYTES: usize = 512;
/// All reasons of an acknowledgement. Senders do not read messages of any length, and
/// send a batch again whose acknowledgement they cannot read.
const MAX_REASONS_BYTES: usize = 1 << 20;

/// What all ingest streams share.
#[derive(Clone)]
pub struct Ingest {
    store: Arc<dyn Store>,
    writer: Writer,
    limits: BatchLimits,
    validators: Arc<Semaphore>,
    deploys: Arc<Registry>,
    metrics: Arc<Metrics>,
}

/// The answer to a batch.
#[derive(Debug)]
pub enum Answer {
    /// To be sent to the sender, which goes on.
    Ack(v1::BatchAck),
    /// No room: the stream ends, the sender keeps its batches.
    NoRoom(String),
}

impl Ingest {
    /// `parallel_validations` bounds how many batches are decoded at a time.
    pub fn new(
        store: Arc<dyn Store>,
        writer: Writer,
        limits: BatchLimits,
        parallel_validations: usize,
        deploys: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let validators = Arc::new(Semaphore::new(parallel_validations));
        Self { store, writer, limits, validators, deploys, metrics }
    }

    /// Takes one batch through all stages.
    pub async fn handle(&self, batch: v1::Batch) -> Answer {
        let batch_id = batch.batch_id.clone();
        let answer = self.answer(batch).await;
        let (answer, outcome) = match answer {
            Ok((ack, outcome)) => (Answer::Ack(v1::BatchAck { batch_id, ..ack }), outcome),
            Err(no_room) => (Answer::NoRoom(no_room), BatchOutcome::NoRoom),
        };
        self.metrics.batch(outcome);
        answer
    }

    async fn answer(&self, batch: v1::Batch) -> Result<(v1::BatchAck, BatchOutcome), String> {
        // Before spending CPU time on a batch that cannot be taken.
        if let Err(err @ StoreError::NoRoom { .. }) = self.store.check_room() {
            return Err(with_causes(&err));
        }
        let received_bytes = batch.profiles.iter().map(|p| p.pprof_gz.len() as u64).sum();
        self.metrics.received(received_bytes);
        let reservation = match self.writer.reserve(received_bytes) {
            Ok(reservation) => reservation,
            Err(full) => return Ok(retry(&full.to_string(), QUEUE_FULL_RETRY_MS)),
        };
        let Ok(permit) = self.validators.acquire().await else {
            return Ok(retry("the collector is stopping", STORE_FAILED_RETRY_MS));
        };
        let limits = self.limits;
        let checked =
            task::spawn_blocking(move || validate(batch, &limits, time::now_unix_ns())).await;
        let (result, rejected) = match checked {
            Ok(checked) => (checked.result, checked.rejected),
            Err(err) => {
                tracing::error!(error = %err, "validating a batch failed");
                return Ok(rejected_ack("validating this batch failed", Vec::new()));
            }
        };
        drop(permit);
        for refused in &rejected {
            self.metrics.profile_rejected(refused.reason.category());
        }
        let rejected = describe(&rejected);
        let valid = match result {
            Ok(valid) => valid,
            Err(err) => return Ok(rejected_ack(&with_causes(&err), rejected)),
        };
        if let Some(ahead) = valid.clock_ahead {
            self.metrics.clock_ahead();
            tracing::warn!(
                host = valid.host,
                ahead_s = ahead.as_secs(),
                "this host's clock is ahead"
            );
        }
        self.submit(valid.batch, reservation, rejected).await
    }

    async fn submit(
        &self,
        batch: ValidBatch,
        reservation: Reservation,
        rejected: Vec<v1::RejectedProfile>,
    ) -> Result<(v1::BatchAck, BatchOutcome), String> {
        let sighting = Sighting::of(&batch);
        match self.writer.submit(batch, reservation).await {
            Ok(Committed::Stored) => {
                self.deploys.see(&sighting);
                Ok((
                    v1::BatchAck {
                        outcome: v1::Outcome::Stored.into(),
                        rejected,
                        ..Default::default()
                    },
                    BatchOutcome::Stored,
                ))
            }
            Ok(Committed::Duplicate) => Ok((
                v1::BatchAck {
                    outcome: v1::Outcome::Duplicate.into(),
                    message: "a batch with this id was stored before".to_owned(),
                    rejected,
                    ..Default::default()
                },
                BatchOutcome::Duplicate,
            )),
            Err(err @ SubmitError::QueueFull { .. }) => {
                Ok(retry(&err.to_string(), QUEUE_FULL_RETRY_MS))
            }
            Err(SubmitError::Store(err)) if matches!(*err, StoreError::NoRoom { .. }) => {
                Err(with_causes(&*err))
            }
            Err(err) => Ok(retry(&with_causes(&err), STORE_FAILED_RETRY_MS)),
        }
    }
}

/// The refused profiles, the first ones with the reason.
fn describe(refused: &[Refused]) -> Vec<v1::RejectedProfile> {
    let mut left_bytes = MAX_REASONS_BYTES;
    let describe = |refused: &Refused| {
        let mut reason = String::new();
        if left_bytes > 0 {
            reason = with_causes(&refused.reason);
            reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
            left_bytes = left_bytes.saturating_sub(reason.len());
        }
        v1::RejectedProfile { index: refused.index, reason }
    };
    refused.iter().map(describe).collect()
}

fn retry(message: &str, retry_after_ms: u32) -> (v1::BatchAck, BatchOutcome) {
    let ack = v1::BatchAck {
        outcome: v1::Outcome::Retry.into(),
        message: message.to_owned(),
        retry_after_ms,
        ..Default::default()
    };
    (ack, BatchOutcome::Retry)
}

fn rejected_ack(message: &str, rejected: Vec<v1::RejectedProfile>) -> (v1::BatchAck, BatchOutcome) {
    let ack = v1::BatchAck {
        outcome: v1::Outcome::Rejected.into(),
        message: message.to_owned(),
        rejected,
        ..Default::default()
    };
    (ack, BatchOutcome::Rejected)
}
