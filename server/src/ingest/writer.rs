//! Group commit: one thread writes what all streams have queued.
//!
//! Syncing a disk takes about as long for one batch as for a hundred, so while one
//! group is being written the next one gathers. The queue is bounded in batches
//! and bytes; what does not fit is refused at once, and the sender keeps it.

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

/// How much may wait to be written.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    /// In batches.
    pub max_batches: usize,
    /// In bytes of compressed profiles.
    pub max_bytes: u64,
}

/// A handle to the writer thread.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Message>,
    queued_bytes: Arc<AtomicU64>,
    limits: QueueLimits,
    metrics: Arc<Metrics>,
}

enum Message {
    Store(Queued),
    Stop,
}

struct Queued {
    batch: ValidBatch,
    bytes: u64,
    since: Instant,
    reply: oneshot::Sender<Result<Committed, Arc<StoreError>>>,
}

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// Others are waiting already.
    #[error("the queue is full ({queued_bytes} bytes wait to be written)")]
    QueueFull {
        /// In bytes of compressed profiles.
        queued_bytes: u64,
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
        let queued_bytes = Arc::new(AtomicU64::new(0));
        let groups = Groups {
            store,
            queued,
            queued_bytes: Arc::clone(&queued_bytes),
            metrics: Arc::clone(&metrics),
        };
        let thread =
            thread::Builder::new().name("store-writer".to_owned()).spawn(|| groups.run())?;
        Ok((Self { queue, queued_bytes, limits, metrics }, thread))
    }

    /// Queues a batch and waits until it is durable.
    ///
    /// # Errors
    /// When the queue is full, or the store refuses; nothing is known to be stored then.
    pub async fn submit(&self, batch: ValidBatch) -> Result<Committed, SubmitError> {
        let bytes = batch.profiles.iter().map(|profile| profile.pprof_gz.len() as u64).sum();
        let queued_bytes = self.queued_bytes.fetch_add(bytes, Ordering::AcqRel);
        if queued_bytes > 0 && queued_bytes.saturating_add(bytes) > self.limits.max_bytes {
            self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(SubmitError::QueueFull { queued_bytes });
        }
        let (reply, answer) = oneshot::channel();
        let queued = Queued { batch, bytes, since: Instant::now(), reply };
        if let Err(err) = self.queue.try_send(Message::Store(queued)) {
            self.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(match err {
                mpsc::error::TrySendError::Full(_) => SubmitError::QueueFull { queued_bytes },
                mpsc::error::TrySendError::Closed(_) => SubmitError::Stopped,
            });
        }
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
    queued_bytes: Arc<AtomicU64>,
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
            let mut group_bytes = first.bytes;
            let mut group = vec![first];
            while group.len() < MAX_GROUP_BATCHES && group_bytes < MAX_GROUP_BYTES {
                match self.queued.try_recv() {
                    Ok(Message::Store(next)) => {
                        group_bytes = group_bytes.saturating_add(next.bytes);
                        group.push(next);
                    }
                    Ok(Message::Stop) => self.queued.close(),
                    Err(_empty) => break,
                }
            }
            self.queued_bytes.fetch_sub(group_bytes, Ordering::AcqRel);
            self.metrics.queued(-i64::try_from(group.len()).unwrap_or(i64::MAX));
            self.commit(group);
        }
    }

    fn commit(&self, group: Vec<Queued>) {
        let mut batches = Vec::with_capacity(group.len());
        let mut replies = Vec::with_capacity(group.len());
        for Queued { batch, since, reply, .. } in group {
            batches.push(batch);
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
