//! Smoothed round-trip times, against `ss`.

use std::time::Duration;

use everflame_tests::net::{End, Link, connections};
use everflame_tests::profile::Sample;
use everflame_tests::tcp::{Serving, hold};
use everflame_tests::waits::Program;

use super::Chosen;
use super::workload::{Recording, serve, start};
use crate::{say, take_turn};

const CONNECTIONS: usize = 8;
const REQUESTS: usize = 20;

/// Compares what was recorded of one end with what `ss` has said there.
fn check(name: &str, samples: &[Sample], end: &End, said_ns: &[f64]) {
    let rtt = Chosen::of(samples, "rtt", end);
    rtt.assert_count(name, said_ns.len() as u64);
    let truth = said_ns.iter().sum::<f64>() / said_ns.len() as f64;
    let seen = rtt.mean_ns();
    say(&format!("{name}: {seen:.0} ns seen, {truth:.0} ns by ss"));
    // `ss` says microseconds. There may be an acknowledgement after the last answer, which only `ss` has seen.
    assert!((seen - truth).abs() <= (0.1 * truth).max(30_000.0), "{name}");
}

fn check_link(link: &Link) {
    let server = serve(link, Serving::answers_after(Duration::from_millis(2)));
    let recording = Recording::start();
    let client = start(link, &hold(server.address, CONNECTIONS, REQUESTS, 0));
    let [at_client, at_server] = [&link.client, &link.server].map(|end| {
        let said = connections(&end.namespace);
        said.iter().map(|connection| connection.rtt_ns).collect::<Vec<f64>>()
    });
    assert!(at_client.len() == CONNECTIONS && at_server.len() == CONNECTIONS);
    let samples = recording.finish();
    client.finish();
    server.finish();
    check("of the client", &samples, &link.client, &at_client);
    check("of the server", &samples, &link.server, &at_server);
}

#[test]
fn round_trip_times_are_what_ss_says() {
    let Some(_turn) = take_turn() else { return };
    check_link(&Link::delayed(Duration::from_millis(5)));
    check_link(&Link::direct());
}

/// Each connection's own, not a mean of all that go to the same place.
#[test]
fn round_trip_times_of_slow_and_fast_ways_are_told_apart() {
    let Some(_turn) = take_turn() else { return };
    let links = [1, 20].map(|ms| Link::delayed(Duration::from_millis(ms)));
    let servers = links.each_ref().map(|link| serve(link, Serving::answers_after(Duration::ZERO)));
    let recording = Recording::start();
    let clients = [0, 1].map(|at| start(&links[at], &hold(servers[at].address, 4, REQUESTS, 0)));
    let samples = recording.finish();
    let _ = clients.map(Program::finish);
    for (link, expected_ns) in links.iter().zip([2e6, 40e6]) {
        let rtt = Chosen::of(&samples, "rtt", &link.client);
        let remote = rtt.with("remote", link.server.v4);
        say(&format!("{:.0} ns seen, {expected_ns} or a little more in truth", remote.mean_ns()));
        assert_eq!(rtt.events(), remote.events());
        assert!((0.95..1.5).contains(&(remote.mean_ns() / expected_ns)));
    }
}
