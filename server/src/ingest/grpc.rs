//! The Ingest service: a stream of batches in, a stream of acknowledgements out.
//!
//! Several batches of a stream are under way at a time, so that one sender gets
//! more than one batch per disk sync; acknowledgements come as they are ready and
//! name their batch. The stream reads no further while too many are under way.

use std::pin::Pin;

use everflame_proto::v1::{self, ingest_server};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{Answer, Ingest};
use crate::stopping::told_to_stop;

/// Batches of one stream that are under way at a time.
const MAX_IN_FLIGHT: usize = 32;

/// The gRPC side of [`Ingest`].
pub struct IngestService {
    ingest: Ingest,
    stopping: watch::Receiver<bool>,
}

impl IngestService {
    /// Streams end, after what they have received is answered, once `stopping` is true.
    pub fn new(ingest: Ingest, stopping: watch::Receiver<bool>) -> Self {
        Self { ingest, stopping }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<v1::BatchAck, Status>> + Send>>;

#[tonic::async_trait]
impl ingest_server::Ingest for IngestService {
    type PushStream = Answers;

    async fn push(
        &self,
        request: Request<Streaming<v1::Batch>>,
    ) -> Result<Response<Answers>, Status> {
        let (answers, sent) = mpsc::channel(MAX_IN_FLIGHT);
        let ingest = self.ingest.clone();
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            let ended = serve(ingest, request.into_inner(), &answers, stopping).await;
            if let Err(status) = ended {
                // The sender may be gone.
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(sent))))
    }
}

/// Answers batches until the sender has no more (Ok), or has to be sent away.
async fn serve(
    ingest: Ingest,
    mut batches: Streaming<v1::Batch>,
    answers: &mpsc::Sender<Result<v1::BatchAck, Status>>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Status> {
    let mut under_way: JoinSet<Answer> = JoinSet::new();
    let mut end = None;
    while end.is_none() {
        tokio::select! {
            Some(answer) = under_way.join_next() => end = deliver(answer, answers).await,
            () = told_to_stop(&mut stopping) => {
                end = Some(Err(Status::unavailable("the collector is stopping; try again")));
            }
            batch = batches.next(), if under_way.len() < MAX_IN_FLIGHT => match batch {
                Some(Ok(batch)) => {
                    let ingest = ingest.clone();
                    under_way.spawn(async move { ingest.handle(batch).await });
                }
                Some(Err(status)) => end = Some(Err(status)),
                None => end = Some(Ok(())),
            },
        }
    }
    // What was received is answered, however the stream ends.
    while let Some(answer) = under_way.join_next().await {
        if let Some(Err(no_room)) = deliver(answer, answers).await {
            end = Some(Err(no_room));
        }
    }
    end.unwrap_or(Ok(()))
}

/// Passes on an answer. Some when the stream has to end.
async fn deliver(
    answer: Result<Answer, tokio::task::JoinError>,
    answers: &mpsc::Sender<Result<v1::BatchAck, Status>>,
) -> Option<Result<(), Status>> {
    match answer {
        Ok(Answer::Ack(ack)) => {
            let gone = answers.send(Ok(ack)).await.is_err();
            gone.then_some(Ok(()))
        }
        Ok(Answer::NoRoom(message)) => Some(Err(Status::resource_exhausted(message))),
        Err(err) => {
            tracing::error!(error = %err, "a batch was not answered");
            Some(Err(Status::internal("a batch could not be handled; send it again")))
        }
    }
}
