//! Connections that do not come about, and those that are reset.

use std::time::{Duration, Instant};

use everflame_tests::net::{Drops, Link, Packets};
use everflame_tests::tcp::{How, Latencies, Serving, connect};

use super::workload::{Recording, record, run, serve, start};
use super::{Chosen, MILLISECOND_NS};
use crate::{say, take_turn};

const THREADS: usize = 20;

/// A port that nobody listens on.
const CLOSED_PORT: u16 = 9;

/// Clients that fail in one way. `loses_syn`: the server is not reached.
fn check(how: How, count: usize, loses_syn: bool, error: &str) {
    let link = Link::direct();
    let drops =
        loses_syn.then(|| Drops::one_in(1, Packets::Syn, &link.server.namespace)).transpose();
    let _drops = match drops {
        Ok(drops) => drops,
        Err(reason) => return say(&format!("SKIPPED: no packets can be dropped here: {reason}")),
    };
    for address in link.server.addresses() {
        let address = (address, CLOSED_PORT).into();
        let recording = Recording::start();
        let client = run(&link, &connect(how, address, THREADS, count));
        let samples = recording.finish();
        let truth = Latencies::of(&client, error);
        assert_eq!(truth.count, count as u64);
        let connects = Chosen::of(&samples, "connect", &link.client);
        assert_eq!(connects.by("error"), [(error, truth.count)].into());
        connects.assert_count(error, truth.count);
        // All threads are woken up at the same time, where the network is what fails.
        let (seen_ns, truth_ns) = (connects.median_ns(), truth.median_ns as f64);
        say(&format!("{error}: after {seen_ns:.0} ns, {truth_ns} ns in truth"));
        assert!((seen_ns - truth_ns).abs() <= MILLISECOND_NS.max(0.01 * truth_ns));
        connects.assert_called_by("connect_to_server");
        assert_eq!(connects.by("remote").into_keys().next().unwrap(), address.ip().to_string());
        assert_eq!(connects.by("remote_port"), [("9", truth.count)].into());
    }
}

#[test]
fn refused_connects_are_counted_with_their_callers() {
    let Some(_turn) = take_turn() else { return };
    check(How::Blocking, 500, false, "ECONNREFUSED");
    check(How::Nonblocking, 500, false, "ECONNREFUSED");
}

#[test]
fn timed_out_connects_are_counted_with_their_callers() {
    let Some(_turn) = take_turn() else { return };
    check(How::Impatient, 2 * THREADS, true, "ETIMEDOUT");
}

#[test]
fn aborted_connects_are_counted_with_their_callers() {
    let Some(_turn) = take_turn() else { return };
    check(How::Abort, 5 * THREADS, true, "aborted");
}

#[test]
fn connects_to_a_host_that_is_not_there_are_counted_with_their_callers() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    let recording = Recording::start();
    let nobody = link.client.nobody(CLOSED_PORT);
    let client = run(&link, &connect(How::Blocking, nobody, THREADS, THREADS));
    let connects = recording.finish();
    let connects = Chosen::of(&connects, "connect", &link.client);
    connects
        .with("error", "EHOSTUNREACH")
        .assert_agrees("connects to nobody", Latencies::of(&client, "EHOSTUNREACH"));
    connects.assert_called_by("connect_to_server");
}

#[test]
fn connects_that_go_on_at_the_end_are_unfinished() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    let _drops = match Drops::one_in(1, Packets::Syn, &link.server.namespace) {
        Ok(drops) => drops,
        Err(reason) => return say(&format!("SKIPPED: no packets can be dropped here: {reason}")),
    };
    let recording = Recording::start();
    let address = (link.server.v4, CLOSED_PORT).into();
    let mut client = start(&link, &connect(How::Blocking, address, THREADS, THREADS));
    std::thread::sleep(Duration::from_secs(1));
    let before = Instant::now();
    client.begin();
    std::thread::sleep(Duration::from_millis(1500));
    let at_least = before.elapsed();
    let samples = recording.finish();
    let at_most = before.elapsed();
    let connects = Chosen::of(&samples, "connect", &link.client);
    assert_eq!(connects.by("error"), [("unfinished", THREADS as u64)].into());
    connects.assert_called_by("connect_to_server");
    let mean_ns = connects.mean_ns();
    say(&format!("unfinished for {mean_ns} ns, which are from {at_least:?} to {at_most:?}"));
    // Its threads begin a little later than they are told to.
    let range = at_least.as_nanos() as f64 - 0.3e9..=at_most.as_nanos() as f64;
    assert!(range.contains(&mean_ns));
}

#[test]
fn resets_are_counted_at_both_ends() {
    let Some(_turn) = take_turn() else { return };
    const CONNECTIONS: usize = 500;
    let link = Link::direct();
    let server = serve(&link, Serving::Drains);
    let port = server.address.port();
    let before = link.client.namespace.counter("Tcp", "OutRsts");
    let client = connect(How::Reset, server.address, THREADS, CONNECTIONS);
    let (_, samples) = record(&link, &client, server);
    let counted = link.client.namespace.counter("Tcp", "OutRsts") - before;
    assert_eq!(counted, CONNECTIONS as u64);
    let sent = Chosen::of(&samples, "reset", &link.client);
    sent.with("reset", "sent").assert_count("resets sent", counted);
    sent.with("remote_port", port).with("direction", "outbound").assert_count("of these", counted);
    let received = Chosen::of(&samples, "reset", &link.server);
    received.with("reset", "received").assert_count("resets received", counted);
    received.with("local_port", port).with("direction", "inbound").assert_count("those", counted);
}
