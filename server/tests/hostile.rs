//! Senders and profiles that mean harm: what they cost is bounded.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod harness;

use everflame_profile::{FunctionInfo, Kind, ProfileBuilder, encode_gz};
use everflame_proto::v1::{Label, MergeRequest, Outcome, ProfileRecord};
use harness::{
    Server,
    batches::{batch, record, simple},
    everything,
};
use tonic::Code;

/// The most memory that the server has had.
fn peak_mib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[tokio::test]
async fn batches_that_are_small_on_the_wire_only_are_refused_before_they_are_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let records = vec![ProfileRecord::default(); 4 << 20];
    let status = server.push(batch("host-a", records)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let mut labels = simple("host-a", "api", 1);
    labels.profiles[0].labels = vec![Label::default(); 8 << 20];
    let status = server.push(labels).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    // Each would be 300 to 400 MiB.
    assert!(peak_mib(&server) < 200, "{} MiB", peak_mib(&server));
    assert_eq!(server.push(simple("host-a", "api", 1)).await.unwrap().outcome(), Outcome::Stored);
}

#[tokio::test]
async fn acknowledgement_of_many_bad_profiles_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let bad = |kind: &str| record(kind, &[], vec![1]);
    // A sender takes answers of 4 MiB.
    let mut profiles = vec![bad(&"x".repeat(1 << 20)); 5];
    profiles.resize(1 << 16, bad("cpu"));
    let ack = server.push(batch("host-a", profiles.clone())).await.unwrap();
    assert_eq!((ack.outcome(), ack.rejected.len()), (Outcome::Rejected, 1 << 16));
    assert!(ack.rejected[0].reason.starts_with("unknown profile kind"), "{}", ack.message);
    assert_eq!(ack.rejected[0].reason.len(), 512);
    profiles.push(bad("cpu"));
    let ack = server.push(batch("host-a", profiles)).await.unwrap();
    assert_eq!((ack.outcome(), ack.rejected.len()), (Outcome::Rejected, 0));
    assert!(ack.message.contains("65537 profiles"), "{}", ack.message);
}

/// A profile of some hundred kilobytes whose flame graph has `side² · lines` nodes: each
/// of its locations has many lines, and each is the caller of each.
fn many_stacks(side: u64, lines: usize) -> Vec<u8> {
    let mut builder =
        ProfileBuilder::new(Kind::Cpu.sample_types(), Kind::Cpu.default_sample_type());
    let inlined = builder.function(FunctionInfo { name: "f", ..FunctionInfo::default() });
    let mut location = |number: u64| {
        let name = format!("g{number}");
        let own = builder.function(FunctionInfo { name: &name, ..FunctionInfo::default() });
        let mut lines = vec![(inlined, 1); lines];
        lines.push((own, 1));
        builder.location(None, number, &lines)
    };
    let locations: Vec<_> = (0..side).map(&mut location).collect();
    for callee in &locations {
        for caller in &locations {
            builder.sample(&[*callee, *caller], &[1, 1], &[]);
        }
    }
    encode_gz(&builder.finish())
}

#[tokio::test]
async fn profile_with_a_huge_tree_is_shown_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let profile = many_stacks(150, 250);
    let ack = server.push(batch("host-a", vec![record("cpu", &[], profile)])).await.unwrap();
    assert_eq!(ack.outcome(), Outcome::Stored);
    let request = MergeRequest { selection: everything("cpu", "") };
    let tree = server.query().await.merge_flame(request).await.unwrap().into_inner();
    assert_eq!(tree.root.unwrap().total_value, 150 * 150);
    // Five million nodes would be 500 MiB.
    assert!(peak_mib(&server) < 400, "{} MiB", peak_mib(&server));
}
