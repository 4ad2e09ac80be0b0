//! Batches whose sums are known.

use everflame_profile::{FunctionInfo, Kind, LabelValue, ProfileBuilder, encode_gz};
use everflame_proto::v1::{Batch, Label, ProfileRecord};

pub(crate) const SECOND_NS: i64 = 1_000_000_000;
pub(crate) const WINDOW_NS: i64 = 10 * SECOND_NS;

pub(crate) fn now_unix_ns() -> i64 {
    let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(since_epoch.as_nanos()).unwrap()
}

pub(crate) fn batch_id() -> Vec<u8> {
    uuid::Uuid::now_v7().as_bytes().to_vec()
}

/// A CPU profile: each stack is a list of function names, leaf first, with a count
/// of samples of 10 ms each.
pub(crate) fn cpu_profile(stacks: &[(&[&str], i64)]) -> Vec<u8> {
    let mut builder =
        ProfileBuilder::new(Kind::Cpu.sample_types(), Kind::Cpu.default_sample_type());
    builder.set_period("cpu", "nanoseconds", 10_000_000);
    builder.set_time(now_unix_ns(), WINDOW_NS);
    for (names, samples) in stacks {
        let mut stack = Vec::new();
        for name in *names {
            let function = builder.function(FunctionInfo {
                name,
                system_name: name,
                filename: "main.c",
                start_line: 1,
            });
            let address = 0x1000 + name.bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte));
            stack.push(builder.location(None, address, &[(function, 7)]));
        }
        let labels: &[(&str, LabelValue<'_>)] = &[];
        builder.sample(&stack, &[*samples, samples * 10_000_000], labels);
    }
    encode_gz(&builder.finish())
}

pub(crate) fn record(kind: &str, labels: &[(&str, &str)], pprof_gz: Vec<u8>) -> ProfileRecord {
    let labels = labels.iter();
    let labels = labels.map(|(name, value)| Label { name: (*name).into(), value: (*value).into() });
    ProfileRecord { kind: kind.into(), labels: labels.collect(), pprof_gz: pprof_gz.into() }
}

/// A batch of the window that has just ended.
pub(crate) fn batch(host: &str, profiles: Vec<ProfileRecord>) -> Batch {
    Batch {
        batch_id: batch_id(),
        host: host.into(),
        sender: "test".into(),
        start_unix_ns: now_unix_ns() - WINDOW_NS,
        duration_ns: WINDOW_NS,
        profiles,
    }
}

/// A batch of one profile with one sample of this count in `work`.
pub(crate) fn simple(host: &str, service: &str, samples: i64) -> Batch {
    let profile = cpu_profile(&[(&["work", "main"], samples)]);
    batch(host, vec![record("cpu", &[("service", service)], profile)])
}

/// The same, with so many bytes on top that do not compress.
pub(crate) fn bulky(host: &str, service: &str, samples: i64, bytes: usize) -> Batch {
    let mut batch = simple(host, service, samples);
    let mut noise = String::with_capacity(bytes);
    while noise.len() < bytes {
        noise.push_str(&uuid::Uuid::new_v4().simple().to_string());
    }
    for profile in &mut batch.profiles {
        let mut decoded =
            everflame_profile::decode(&profile.pprof_gz, &Default::default()).unwrap();
        decoded.comment.push(i64::try_from(decoded.string_table.len()).unwrap());
        decoded.string_table.push(noise.clone());
        profile.pprof_gz = encode_gz(&decoded).into();
    }
    batch
}
