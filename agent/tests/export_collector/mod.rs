//! A test double of the collector: a real gRPC server on a loopback port, whose answers
//! a test decides. It keeps batches in memory only; what survives its restart is what
//! the test hands over to the next one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;

use everflame_proto::v1::ingest_server::{Ingest, IngestServer};
use everflame_proto::v1::{Batch, BatchAck, Outcome};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

/// What to do with a batch that arrived.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Acknowledge it; with RETRY, ask for this many milliseconds.
    Ack(Outcome, u32),
    /// Keep it, and acknowledge it as stored just before the next one that is answered.
    Hold,
    /// Say nothing, ever.
    Silence,
    /// End the stream with a status.
    Fail(Code),
    /// End the stream as if all were well.
    Close,
}

impl Answer {
    pub(crate) const STORED: Self = Self::Ack(Outcome::Stored, 0);
}

/// One batch that arrived, or arrived again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) batch_id: Vec<u8>,
    pub(crate) host: String,
    /// Counts from 0, over all collectors that share the record.
    pub(crate) stream: usize,
    /// Whether the answer allowed the sender to forget it.
    pub(crate) settled: bool,
}

/// What arrived, in order of arrival. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Record {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    streams: Arc<Mutex<usize>>,
}

impl Record {
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().expect("no panics").clone()
    }

    /// The hosts of settled batches (tests name batches by host), in order of arrival.
    pub(crate) fn settled(&self) -> Vec<String> {
        self.arrivals().into_iter().filter(|a| a.settled).map(|a| a.host).collect()
    }
}

type Decide = dyn FnMut(&Batch, &[Arrival]) -> Answer + Send;

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Collector {
    /// Starts on a free port. `decide` gets each batch and what arrived before it.
    pub(crate) fn start(
        record: &Record,
        decide: impl FnMut(&Batch, &[Arrival]) -> Answer + Send + 'static,
    ) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), record, decide)
    }

    pub(crate) fn start_at(
        address: SocketAddr,
        record: &Record,
        decide: impl FnMut(&Batch, &[Arrival]) -> Answer + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind(address).expect("a port");
        listener.set_nonblocking(true).expect("a socket option");
        let address = listener.local_addr().expect("an address");
        let service = Service { record: record.clone(), decide: Arc::new(Mutex::new(decide)) };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let serve = Server::builder()
                    .add_service(IngestServer::new(service))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                tokio::select! {
                    served = serve => served.expect("the server runs until it is stopped"),
                    _ = stopped => {}
                }
            });
            // Dropping the runtime here cuts all connections, as SIGKILL would.
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the collector did not panic");
        }
    }
}

struct Service {
    record: Record,
    decide: Arc<Mutex<Decide>>,
}

#[tonic::async_trait]
impl Ingest for Service {
    type PushStream = ReceiverStream<Result<BatchAck, Status>>;

    async fn push(
        &self,
        request: Request<Streaming<Batch>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let (acks, receiver) = mpsc::channel(64);
        let (record, decide) = (self.record.clone(), Arc::clone(&self.decide));
        let stream = {
            let mut streams = record.streams.lock().expect("no panics");
            *streams += 1;
            *streams - 1
        };
        tokio::spawn(answer(request.into_inner(), record, decide, acks, stream));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn answer(
    mut batches: Streaming<Batch>,
    record: Record,
    decide: Arc<Mutex<Decide>>,
    acks: mpsc::Sender<Result<BatchAck, Status>>,
    stream: usize,
) {
    let mut held = Vec::new();
    while let Ok(Some(batch)) = batches.message().await {
        let (answer, index) = {
            let mut arrivals = record.arrivals.lock().expect("no panics");
            let answer = (decide.lock().expect("no panics"))(&batch, &arrivals);
            arrivals.push(Arrival {
                batch_id: batch.batch_id.clone(),
                host: batch.host.clone(),
                stream,
                settled: false,
            });
            (answer, arrivals.len() - 1)
        };
        let mut due = Vec::new();
        match answer {
            Answer::Silence => continue,
            Answer::Hold => {
                held.push((index, batch.batch_id));
                continue;
            }
            Answer::Close => return,
            Answer::Fail(code) => {
                let _ = acks.send(Err(Status::new(code, "as the test wants"))).await;
                return;
            }
            Answer::Ack(outcome, retry_after_ms) => {
                due.extend(held.drain(..).map(|(index, id)| (index, id, Outcome::Stored, 0)));
                due.push((index, batch.batch_id, outcome, retry_after_ms));
            }
        }
        for (index, batch_id, outcome, retry_after_ms) in due {
            // Settled first, as a collector makes a batch durable before it says so.
            let settled = outcome != Outcome::Retry;
            record.arrivals.lock().expect("no panics")[index].settled = settled;
            let ack = BatchAck {
                batch_id,
                outcome: outcome.into(),
                message: "as the test wants".into(),
                retry_after_ms,
                rejected: Vec::new(),
            };
            if acks.send(Ok(ack)).await.is_err() {
                return;
            }
        }
    }
}
