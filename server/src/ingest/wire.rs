//! Batches off the wire: what a message would take in memory is known before it is decoded.
//!
//! An empty profile record is two bytes on the wire and dozens in memory, so a
//! message within its limit could decode into gigabytes. tonic's generated server has
//! no place to look at a message first, hence the [`PushServer`] here.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use everflame_profile::wire::Fields;
use everflame_proto::v1::{self, ingest_server::Ingest};
use prost::{Message as _, bytes::Buf as _};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Service, StdError, http},
    server::{Grpc, NamedService, StreamingService},
};

use super::grpc::IngestService;

const PUSH: &str = "/everflame.v1.Ingest/Push";
/// Decoded messages may take this many times the limit on encoded ones. Real ones
/// are profiles for the most part, which take what they take on the wire.
const MEMORY_FACTOR: usize = 4;

/// The Ingest service with limits on messages.
#[derive(Clone)]
pub struct PushServer {
    service: Arc<IngestService>,
    max_message_bytes: usize,
}

impl PushServer {
    /// A server that refuses messages of more bytes than this.
    pub fn new(service: IngestService, max_message_bytes: usize) -> Self {
        Self { service: Arc::new(service), max_message_bytes }
    }
}

impl NamedService for PushServer {
    const NAME: &'static str = "everflame.v1.Ingest";
}

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<B> Service<http::Request<B>> for PushServer
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != PUSH {
            return Box::pin(async {
                Ok(Status::unimplemented("Ingest has Push and nothing else").into_http())
            });
        }
        let codec =
            BatchCodec { max_decoded_bytes: self.max_message_bytes.saturating_mul(MEMORY_FACTOR) };
        let mut grpc = Grpc::new(codec)
            // Checked against the length prefix, before anything is read.
            .max_decoding_message_size(self.max_message_bytes);
        let push = Push(Arc::clone(&self.service));
        Box::pin(async move { Ok(grpc.streaming(push, request).await) })
    }
}

struct Push(Arc<IngestService>);

impl StreamingService<v1::Batch> for Push {
    type Response = v1::BatchAck;
    type ResponseStream = <IngestService as Ingest>::PushStream;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<v1::Batch>>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move { service.push(request).await })
    }
}

struct BatchCodec {
    max_decoded_bytes: usize,
}

impl Codec for BatchCodec {
    type Encode = v1::BatchAck;
    type Decode = v1::Batch;
    type Encoder = AckEncoder;
    type Decoder = BatchDecoder;

    fn encoder(&mut self) -> AckEncoder {
        AckEncoder
    }

    fn decoder(&mut self) -> BatchDecoder {
        BatchDecoder { max_decoded_bytes: self.max_decoded_bytes }
    }
}

struct AckEncoder;

impl Encoder for AckEncoder {
    type Item = v1::BatchAck;
    type Error = Status;

    fn encode(&mut self, ack: v1::BatchAck, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        ack.encode(buffer).map_err(|err| Status::internal(err.to_string()))
    }
}

struct BatchDecoder {
    max_decoded_bytes: usize,
}

impl Decoder for BatchDecoder {
    type Item = v1::Batch;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<v1::Batch>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        if decoded_bytes(&message) > self.max_decoded_bytes {
            return Err(Status::out_of_range(format!(
                "the decoded batch would take more than {} bytes of memory",
                self.max_decoded_bytes
            )));
        }
        v1::Batch::decode(message)
            .map(Some)
            .map_err(|err| Status::invalid_argument(format!("not a batch: {err}")))
    }
}

/// About what `Batch::decode` allocates; payloads of profiles are shared with the message.
fn decoded_bytes(message: &[u8]) -> usize {
    const PROFILES: u64 = 6;
    const LABELS: u64 = 2;
    let mut bytes = message.len();
    for (_, record) in Fields::of(message).filter(|(number, _)| *number == PROFILES) {
        let labels = Fields::of(record).filter(|(number, _)| *number == LABELS).count();
        bytes = bytes
            .saturating_add(size_of::<v1::ProfileRecord>())
            .saturating_add(labels.saturating_mul(size_of::<v1::Label>()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(batch: &v1::Batch, at_least: usize, at_most: usize) {
        let bytes = decoded_bytes(&batch.encode_to_vec());
        assert!((at_least..=at_most).contains(&bytes), "{bytes}");
    }

    #[test]
    fn estimate_covers_records_and_labels() {
        let record = |labels| v1::ProfileRecord {
            labels: vec![v1::Label::default(); labels],
            ..Default::default()
        };
        let (of_record, of_label) = (size_of::<v1::ProfileRecord>(), size_of::<v1::Label>());
        let batch = |profiles| v1::Batch { profiles, ..Default::default() };
        check(&batch(vec![record(0); 1_000]), 1_000 * of_record, 1_000 * (of_record + 2));
        check(&batch(vec![record(1_000)]), 1_000 * of_label, 1_000 * (of_label + 3) + of_record);
        check(&batch(Vec::new()), 0, 0);
    }

    #[test]
    fn garbage_is_estimated_without_a_panic() {
        for bytes in [&[0xff; 32][..], &[0x32, 0xff], &[0x32, 0x7f, 0x12], &[0x30, 0x80]] {
            assert!(decoded_bytes(bytes) >= bytes.len());
        }
    }
}
