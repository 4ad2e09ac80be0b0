//! Reports of profiles made by hand.

use crate::builder::{FunctionInfo, LabelValue, ProfileBuilder};
use crate::kind::Kind;

use super::*;

const OUTBOUND: [(&str, LabelValue<'_>); 4] = [
    (DIRECTION, LabelValue::Str("outbound")),
    ("pid", LabelValue::Str("7")),
    (REMOTE, LabelValue::Str("10.0.0.5")),
    (REMOTE_PORT, LabelValue::Num(443, "")),
];
const INBOUND: [(&str, LabelValue<'_>); 4] = [
    (DIRECTION, LabelValue::Str("inbound")),
    ("pid", LabelValue::Str("7")),
    (REMOTE, LabelValue::Str("10.0.0.5")),
    (LOCAL_PORT, LabelValue::Num(80, "")),
];

struct Recorded(ProfileBuilder);

impl Recorded {
    /// Two seconds.
    fn new() -> Self {
        let kind = Kind::Tcp;
        let mut builder = ProfileBuilder::new(kind.sample_types(), kind.default_sample_type());
        builder.set_time(0, 2_000_000_000);
        Self(builder)
    }

    /// `events` of these, of `us` microseconds each, by a function of the event's name.
    fn add(
        &mut self,
        peer: &[(&'static str, LabelValue<'static>)],
        event: Event,
        (events, us): (i64, i64),
        more: &[(&'static str, LabelValue<'static>)],
    ) {
        let name = event.name();
        let function = FunctionInfo { name, system_name: name, filename: "", start_line: 0 };
        let function = self.0.function(function);
        let stack = [self.0.location(None, 0, &[(function, 0)])];
        let ns = us * 1000;
        let quarter = (1_i64 << ns.max(4).ilog2()) / 4;
        let mut labels = vec![
            (EVENT, LabelValue::Str(name)),
            (LATENCY, LabelValue::Num(ns / quarter * quarter, "nanoseconds")),
        ];
        labels.extend(peer);
        labels.extend(more);
        self.0.sample(&stack, &[events, events * ns], &labels);
    }

    fn report(self) -> NetReport {
        net(&self.0.finish())
    }
}

#[test]
fn what_a_process_asks_and_what_it_is_asked_are_two_rows() {
    let mut recorded = Recorded::new();
    recorded.add(&OUTBOUND, Event::Request, (10, 1000), &[]);
    // The port of who connected, if a profile has it, is not looked at.
    let client = (REMOTE_PORT, LabelValue::Num(40_001, ""));
    recorded.add(&INBOUND, Event::Request, (20, 1), &[client]);
    recorded.add(&INBOUND, Event::Accept, (4, 5), &[(REMOTE_PORT, LabelValue::Num(9, ""))]);
    let NetReport { seconds, peers } = recorded.report();
    let [outbound, inbound] = &peers[..] else { panic!("{peers:?}") };
    assert!((seconds - 2.0).abs() < 1e-9);
    assert_eq!(outbound.direction, Direction::Outbound);
    assert_eq!((outbound.remote_port, outbound.local_port), (Some(443), None));
    assert_eq!((outbound.requests.count, outbound.wait_ns), (10, 10_000_000));
    assert_eq!(inbound.direction, Direction::Inbound);
    assert_eq!((inbound.remote_port, inbound.local_port), (None, Some(80)));
    assert_eq!((inbound.requests.count, inbound.accepts.count), (20, 4));
    assert_eq!((inbound.requests.per_second, inbound.accepts.per_second), (10.0, 2.0));
    assert_eq!(inbound.accepts.latency.p50_ns, 5000);
}

#[test]
fn failures_have_their_own_latencies() {
    let error = |name| [(ERROR, LabelValue::Str(name))];
    let mut recorded = Recorded::new();
    recorded.add(&OUTBOUND, Event::Connect, (98, 100), &[]);
    recorded.add(&OUTBOUND, Event::Connect, (2, 125), &[]);
    recorded.add(&OUTBOUND, Event::Connect, (3, 50), &error("ECONNREFUSED"));
    recorded.add(&OUTBOUND, Event::Connect, (4, 1_000_000), &error("aborted"));
    recorded.add(&OUTBOUND, Event::Connect, (1, 2_000_000), &error("unfinished"));
    let ConnectTotals { count, per_second, failed, failures, latency } =
        recorded.report().peers.remove(0).connects;
    assert_eq!((count, per_second, failed), (108, 54.0, 7));
    // Other quarters of the same power of two.
    assert_eq!((latency.p50_ns, latency.p99_ns), (100_000, 125_000));
    let failures: Vec<_> = failures
        .iter()
        .map(|failures| (failures.error.as_str(), failures.count, failures.latency.p50_ns))
        .collect();
    assert_eq!(
        failures,
        [
            ("aborted", 4, 1_000_000_000),
            ("ECONNREFUSED", 3, 50_000),
            ("unfinished", 1, 2_000_000_000)
        ]
    );
}

#[test]
fn streaming_is_counted_and_has_no_latency() {
    let pattern = |pattern: Pattern| [(PATTERN, LabelValue::Str(pattern.name()))];
    let mut recorded = Recorded::new();
    recorded.add(&OUTBOUND, Event::Request, (5, 1000), &pattern(Pattern::Single));
    recorded.add(&OUTBOUND, Event::Request, (2, 1000), &pattern(Pattern::Parts));
    recorded.add(&OUTBOUND, Event::Request, (1, 1000), &pattern(Pattern::Pipelined));
    recorded.add(&OUTBOUND, Event::Request, (900, 9), &pattern(Pattern::Streaming));
    let row = recorded.report().peers.remove(0);
    let requests = row.requests;
    assert_eq!((requests.count, requests.per_second), (8, 4.0));
    assert_eq!((requests.latency.p50_ns, requests.latency.max_ns), (1_000_000, 1_000_000));
    assert_eq!((requests.latency.total_ns, row.wait_ns), (8_000_000, 8_000_000));
    let patterns = requests.patterns.iter().map(|(name, count)| (name.as_str(), *count));
    let expected = [("parts", 2), ("pipelined", 1), ("single", 5), ("streaming", 900)];
    assert_eq!(patterns.collect::<Vec<_>>(), expected);
    assert_eq!((row.stacks[0].events, row.stacks[0].latency_ns), (908, 8_000_000));
}

#[test]
fn round_trips_are_no_waits_and_what_is_sent_again_comes_last() {
    let reset = |which| [(RESET, LabelValue::Str(which))];
    let mut recorded = Recorded::new();
    recorded.add(&OUTBOUND, Event::Rtt, (3, 800), &[]);
    recorded.add(&OUTBOUND, Event::Rtt, (1, 90_000), &[]);
    recorded.add(&OUTBOUND, Event::Retransmit, (12, 0), &[]);
    recorded.add(&OUTBOUND, Event::Reset, (1, 0), &reset(SENT));
    recorded.add(&OUTBOUND, Event::Reset, (2, 0), &reset(RECEIVED));
    recorded.add(&OUTBOUND, Event::Connect, (1, 10), &[]);
    let row = recorded.report().peers.remove(0);
    let rtt = RoundTrips {
        count: 4,
        p50_ns: 800_000,
        p90_ns: 90_000_000,
        p99_ns: 90_000_000,
        max_ns: 90_000_000,
    };
    assert_eq!((row.rtt, row.wait_ns), (rtt, 10_000));
    assert_eq!((row.retransmits, row.resets_sent, row.resets_received), (12, 1, 2));
    let stacks: Vec<_> = row.stacks.iter().map(|stack| (stack.event, stack.events)).collect();
    let expected = [(Event::Connect, 1), (Event::Retransmit, 12), (Event::Reset, 3)];
    assert_eq!(stacks, expected);
    assert_eq!(row.stacks[1].stack, ["retransmit"]);
}

#[test]
fn the_same_address_in_another_namespace_is_another_remote() {
    let mut recorded = Recorded::new();
    for netns in [1, 2, 2] {
        let netns = [(NETNS, LabelValue::Num(netns, ""))];
        recorded.add(&OUTBOUND, Event::Request, (1, 1), &netns);
    }
    let rows: Vec<_> =
        recorded.report().peers.iter().map(|row| (row.netns, row.requests.count)).collect();
    assert_eq!(rows, [(Some(2), 2), (Some(1), 1)]);
}

#[test]
fn other_profiles_have_no_peers() {
    assert_eq!(net(&Profile::default()), NetReport::default());
    let builder = ProfileBuilder::new(Kind::Block.sample_types(), "ops");
    assert_eq!(net(&builder.finish()), NetReport::default());
}
