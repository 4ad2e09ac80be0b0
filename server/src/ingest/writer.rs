//! Group commit: one thread writes what all streams have queued.
//!
//! Syncing a disk takes about as long for one batch as for a hundred, so while one
//! group is being written the next one gathers. What is under way is bounded: a
//! batch reserves its bytes when it is received and holds them until it is
//! answered. What does not fit is refused at once, and the sender keeps it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    causes::with_causes,
    metrics::Metrics,
    store::{Committed, Store, StoreError, ValidBatch},
};

/// Batches written at once; bounds how long the first of a group waits.
const MAX_GROUP_BATCHES: usize = 256;
/// Bytes written at once.
const MAX_GROUP_BYTES: u64 = 16 << 20;

/// How much may be under way.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// Batches that wait to be written.
    pub max_batches: usize,
    /// Compressed profiles that were received and not yet answered.
    pub max_bytes: u64,
}

/// Room for a batch, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    bytes: u64,
    reserved_bytes: Arc<AtomicU64>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A handle to the writer thread.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Message>,
    reserved_bytes: Arc<AtomicU64>,
    limits: QueueLimits,
    metrics: Arc<Metrics>,
}

enum Message {
    Store(Queued),
    Stop,
}

struct Queued {
    batch: ValidBatch,
    reservation: Reservation,
    since: Instant,
    reply: oneshot::Sender<Result<Committed, Arc<StoreError>>>,
}

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// Others are waiting already.
    #[error("{reserved_bytes} bytes of profiles are being handled already; slow down")]
    QueueFull {
        /// Of compressed profiles.
        reserved_bytes: u64,
    },
    /// The collector is stopping.
    #[error("the collector is stopping")]
    Stopped,
    /// The store refused the group that the batch was in.
    #[error("cannot store this batch now")]
    Store(#[source] Arc<StoreError>),
}

impl Writer {
    /// Starts the writer thread. It ends when it is told to stop, or when all
    /// handles are gone, and writes what is queued before.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        store: Arc<dyn Store>,
        limits: QueueLimits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let (queue, queued) = mpsc::channel(limits.max_batches.max(1));
        let groups = Groups { store, queued, metrics: Arc::clone(&metrics) };
        let thread =
            thread::Builder::new().name("store-writer".to_owned()).spawn(|| groups.run())?;
        let reserved_bytes = Arc::new(AtomicU64::new(0));
        Ok((Self { queue, reserved_bytes, limits, metrics }, thread))
    }

    /// Makes room for a batch, before anything is done with it.
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`] when there is none.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, SubmitError> {
        let reserved_bytes = self.reserved_bytes.fetch_add(bytes, Ordering::AcqRel);
        let reservation = Reservation { bytes, reserved_bytes: Arc::clone(&self.reserved_bytes) };
        // One batch always fits, however large.
        if reserved_bytes > 0 && reserved_bytes.saturating_add(bytes) > self.limits.max_bytes {
            return Err(SubmitError::QueueFull { reserved_bytes });
        }
        Ok(reservation)
    }

    /// Queues a batch and waits until it is durable.
    ///
    /// # Errors
    /// When the queue is full, or the store refuses; nothing is known to be stored then.
    pub async fn submit(
        &self,
        batch: ValidBatch,
        reservation: Reservation,
    ) -> Result<Committed, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let queued = Queued { batch, reservation, since: Instant::now(), reply };
        self.queue.try_send(Message::Store(queued)).map_err(|err| match err {
            mpsc::error::TrySendError::Full(_) => SubmitError::QueueFull {
                reserved_bytes: self.reserved_bytes.load(Ordering::Relaxed),
            },
            mpsc::error::TrySendError::Closed(_) => SubmitError::Stopped,
        })?;
        self.metrics.queued(1);
        match answer.await {
            Ok(outcome) => outcome.map_err(SubmitError::Store),
            Err(_writer_is_gone) => Err(SubmitError::Stopped),
        }
    }

    /// Lets the thread write what is queued, and end.
    pub async fn stop(&self) {
        // An error means that it has ended.
        let _ = self.queue.send(Message::Stop).await;
    }
}

/// The writer thread's side.
struct Groups {
    store: Arc<dyn Store>,
    queued: mpsc::Receiver<Message>,
    metrics: Arc<Metrics>,
}

impl Groups {
    fn run(mut self) {
        while let Some(message) = self.queued.blocking_recv() {
            let Message::Store(first) = message else {
                // What is queued can still be received; nothing more can be queued.
                self.queued.close();
                continue;
            };
            let mut group_bytes = first.reservation.bytes;
            let mut group = vec![first];
            while group.len() < MAX_GROUP_BATCHES && group_bytes < MAX_GROUP_BYTES {
                match self.queued.try_recv() {
                    Ok(Message::Store(next)) => {
                        group_bytes = group_bytes.saturating_add(next.reservation.bytes);
                        group.push(next);
                    }
                    Ok(Message::Stop) => self.queued.close(),
                    Err(_empty) => break,
                }
            }
            self.metrics.queued(-i64::try_from(group.len()).unwrap_or(i64::MAX));
            self.commit(group);
        }
    }

    fn commit(&self, group: Vec<Queued>) {
        let mut batches = Vec::with_capacity(group.len());
        let mut replies = Vec::with_capacity(group.len());
        // Held until the batches are dropped.
        let mut reservations = Vec::with_capacity(group.len());
        for Queued { batch, reservation, since, reply } in group {
            batches.push(batch);
            reservations.push(reservation);
            replies.push((since, reply));
        }
        match self.store.commit(&batches) {
            Ok(outcomes) => {
                for ((batch, outcome), (since, reply)) in batches.iter().zip(outcomes).zip(replies)
                {
                    if outcome == Committed::Stored {
                        self.metrics.stored(batch);
                    }
                    self.metrics.committed(since.elapsed());
                    // The stream may have ended meanwhile; the sender will ask again.
                    let _ = reply.send(Ok(outcome));
                }
            }
            Err(err) => {
                if !matches!(err, StoreError::NoRoom { .. }) {
                    tracing::error!(error = with_causes(&err), "cannot store batches");
                }
                let err = Arc::new(err);
                for (_, reply) in replies {
                    let _ = reply.send(Err(Arc::clone(&err)));
                }
            }
        }
    }
}
