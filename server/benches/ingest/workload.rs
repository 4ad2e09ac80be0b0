//! Batches that look like those of a busy host.
//!
//! Each service has a few hundred functions that are seen at all. Its stacks share
//! their upper frames, part ways further down, and meet again in what everything
//! calls, as those of real programs do.

use everflame_profile::{
    FunctionId, FunctionInfo, Kind, LabelValue, LocationId, MappingId, MappingInfo, ProfileBuilder,
    encode_gz,
};
use everflame_proto::v1::{Label, ProfileRecord};

/// Profiles (processes) per batch.
pub(crate) const PROFILES_PER_BATCH: u64 = 40;
/// Distinct stacks per profile.
pub(crate) const SAMPLES_PER_PROFILE: u64 = 20;
const SERVICES: u64 = 12;
/// Functions of a service.
const FUNCTIONS: u64 = 300;
const MIN_DEPTH: u64 = 20;
const MAX_DEPTH: u64 = 40;
/// Frames from the thread's start on that all stacks of a service share.
const COMMON_DEPTH: u64 = 8;

const NAMESPACES: [&str; 12] = [
    "tokio::runtime::scheduler::multi_thread",
    "hyper::proto::h2::server",
    "std::collections::hash::map",
    "grpc_core::ClientChannel",
    "com.example.orders.repository",
    "rocksdb::BlockBasedTable",
    "v8::internal::compiler",
    "net/http.(*conn)",
    "serde_json::de",
    "folly::coro::detail",
    "runtime",
    "absl::container_internal",
];
const VERBS: [&str; 16] = [
    "poll", "read", "write", "parse", "lookup", "insert", "resize", "compare", "hash", "encode",
    "decode", "flush", "acquire", "release", "visit", "dispatch",
];
const NOUNS: [&str; 20] = [
    "frame", "block", "header", "entry", "bucket", "page", "request", "response", "node", "token",
    "buffer", "segment", "cursor", "index", "batch", "stream", "record", "field", "session",
    "cache",
];

/// xorshift64*: the same workload in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The profiles of one batch of one host.
pub(crate) fn records(random: &mut Random, host: u64) -> Vec<ProfileRecord> {
    (0..PROFILES_PER_BATCH)
        .map(|process| {
            let service = (host + process) % SERVICES;
            let label = |name: &str, value: String| Label { name: name.to_owned(), value };
            ProfileRecord {
                kind: Kind::Cpu.name().to_owned(),
                labels: vec![
                    label("comm", format!("service-{service}")),
                    label("container_id", format!("{:016x}", host * 1_000 + process)),
                    label("namespace", "production".to_owned()),
                    label("pid", (1_000 + process).to_string()),
                    label("pod", format!("service-{service}-{host:x}-{process:x}")),
                    label("service", format!("service-{service}")),
                    label("version", "v42".to_owned()),
                ],
                pprof_gz: profile(random, service, SAMPLES_PER_PROFILE).into(),
            }
        })
        .collect()
}

/// A profile with so many distinct stacks, of one to four samples each.
pub(crate) fn profile(random: &mut Random, service: u64, stacks: u64) -> Vec<u8> {
    let mut builder =
        ProfileBuilder::new(Kind::Cpu.sample_types(), Kind::Cpu.default_sample_type());
    builder.set_period("cpu", "nanoseconds", 1_000_000_000 / 19);
    let binary = builder.mapping(MappingInfo {
        memory_start: 0x40_0000,
        memory_limit: 0x240_0000,
        file_offset: 0x40_0000,
        filename: &format!("/usr/local/bin/service-{service}"),
        build_id: &format!("{:040x}", service.wrapping_mul(0x1234_5678_9ABC_DEF1)),
    });
    for _ in 0..stacks {
        let stack = stack(&mut builder, binary, random, service);
        let samples = 1 + random.below(4) as i64;
        let thread = format!("worker-{}", random.below(4));
        let labels = [("thread", LabelValue::Str(&thread))];
        builder.sample(&stack, &[samples, samples * 52_631_578], &labels);
    }
    encode_gz(&builder.finish())
}

/// Walks down a call graph in which a function and a choice give the next function.
fn stack(
    builder: &mut ProfileBuilder,
    binary: MappingId,
    random: &mut Random,
    service: u64,
) -> Vec<LocationId> {
    let depth = MIN_DEPTH + random.below(MAX_DEPTH - MIN_DEPTH + 1);
    let mut function = 0;
    let mut stack = Vec::new();
    for level in 0..depth {
        // Most calls go the usual way.
        let usual = level < COMMON_DEPTH || random.below(10) < 7;
        let choice = if usual { 0 } else { 1 + random.below(2) };
        let seed = ((service * FUNCTIONS + function) * 41 + level) * 3 + choice;
        function = Random::new(seed).below(FUNCTIONS);
        let address = 0x40_0000 + function * 0x1000 + choice * 0x40;
        let id = function_id(builder, service * FUNCTIONS + function);
        let line = 10 + (function % 400) as i64 + choice as i64;
        stack.push(builder.location(Some(binary), address, &[(id, line)]));
    }
    stack.reverse();
    stack
}

fn function_id(builder: &mut ProfileBuilder, function: u64) -> FunctionId {
    let pick = |table: &[&'static str], n: u64| table[(n % table.len() as u64) as usize];
    let (namespace, verb, noun) =
        (pick(&NAMESPACES, function), pick(&VERBS, function / 7), pick(&NOUNS, function / 3));
    let name = format!("{namespace}::{verb}_{noun}_{function}");
    let filename = format!("/build/src/{}/{noun}.rs", namespace.replace("::", "/"));
    builder.function(FunctionInfo {
        name: &name,
        system_name: &name,
        filename: &filename,
        start_line: 10 + (function % 400) as i64,
    })
}
