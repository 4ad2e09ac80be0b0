//! How long it takes to connect, to be accepted, and to be answered, against what both ends measure.

use std::net::IpAddr;
use std::time::Duration;

use everflame_tests::net::Link;
use everflame_tests::tcp::{How, Latencies, Server, Serving, Shape, connect, request};

use super::Chosen;
use super::workload::{record, serve};
use crate::take_turn;

const ACCEPT: Duration = Duration::from_millis(30);
const ANSWER: Duration = Duration::from_millis(10);
const ONE_WAY: Duration = Duration::from_millis(5);

/// Connections at the same time.
const THREADS: usize = 16;
/// Together they make more than 1,000.
const ROUNDS: usize = 63;

/// Over a long way.
const FEW_THREADS: usize = 8;
const MORE_ROUNDS: usize = 126;

fn check_accepts_and_requests(link: &Link, address: IpAddr) {
    let how = Serving::Answers { accept: ACCEPT, answer: ANSWER };
    let server = Server::start(Some(&link.server.namespace), (address, 0), how);
    // The first request on a connection waits until that is accepted.
    let client = request(Shape::Single, server.address, THREADS, ROUNDS, 3);
    let (truths, samples) = record(link, &client, server);
    let accepts = Chosen::of(&samples, "accept", &link.server);
    let truth = Latencies::of(&truths.server, "accept");
    assert!(truth.count >= 1000 && truth.median_ns >= 30_000_000);
    accepts.assert_agrees("accepts", truth);
    accepts.assert_called_by("accept_client");
    let requests = Chosen::of(&samples, "request", &link.client).with("direction", "outbound");
    requests.assert_agrees("requests", Latencies::of(&truths.client, "request"));
    requests.assert_called_by("send_request");
    let answers = Chosen::of(&samples, "request", &link.server).with("direction", "inbound");
    answers.assert_agrees("answers", Latencies::of(&truths.server, "answer"));
    answers.assert_called_by("answer_request");
}

#[test]
fn accepts_and_requests_take_what_both_ends_measure() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    for address in link.server.addresses() {
        check_accepts_and_requests(&link, address);
    }
}

#[test]
fn connects_take_what_the_client_measures() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::delayed(ONE_WAY);
    for (how, address) in [How::Blocking, How::Nonblocking].into_iter().zip(link.server.addresses())
    {
        let namespace = Some(&link.server.namespace);
        let server = Server::start(namespace, (address, 0), Serving::Drains);
        let client = connect(how, server.address, FEW_THREADS, 1000);
        let (truths, samples) = record(&link, &client, server);
        let truth = Latencies::of(&truths.client, "connect");
        assert!(truth.count == 1000 && truth.median_ns >= 10_000_000);
        let connects = Chosen::of(&samples, "connect", &link.client);
        connects.assert_agrees(&format!("{how:?} connects"), truth);
        connects.assert_called_by("connect_to_server");
    }
}

/// The client's requests take longer than the server's answers: there is a way in between.
#[test]
fn requests_over_a_long_way_take_longer_for_the_client() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::delayed(ONE_WAY);
    let server = serve(&link, Serving::answers_after(ANSWER));
    let client = request(Shape::Single, server.address, FEW_THREADS, MORE_ROUNDS, 1);
    let (truths, samples) = record(&link, &client, server);
    let outside = Latencies::of(&truths.client, "request");
    let inside = Latencies::of(&truths.server, "answer");
    assert!(outside.median_ns >= inside.median_ns + 10_000_000);
    Chosen::of(&samples, "request", &link.client).assert_agrees("requests", outside);
    Chosen::of(&samples, "request", &link.server).assert_agrees("answers", inside);
}
