//! How requests and answers follow each other.

use std::time::Duration;

use everflame_tests::net::Link;
use everflame_tests::profile::Sample;
use everflame_tests::tcp::{Latencies, Serving, Shape, request};

use super::Chosen;
use super::workload::{Truths, record, serve};
use crate::{say, take_turn};

const ANSWER: Duration = Duration::from_millis(10);
const THREADS: usize = 4;
const ROUNDS: usize = 2;
const REQUESTS: usize = 50;

fn exchange(shape: Shape, link: &Link) -> (Truths, Vec<Sample>) {
    let server = serve(link, Serving::answers_after(ANSWER));
    let client = request(shape, server.address, THREADS, ROUNDS, REQUESTS);
    record(link, &client, server)
}

/// Requests of one end, by their pattern.
fn requests<'a>(samples: &'a [Sample], link: &Link, direction: &str) -> Chosen<'a> {
    let end = if direction == "outbound" { &link.client } else { &link.server };
    let requests = Chosen::of(samples, "request", end).with("direction", direction);
    say(&format!("{direction}: {:?}", requests.by("pattern")));
    requests
}

#[test]
fn one_request_and_one_answer_are_single() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    let (truths, samples) = exchange(Shape::Single, &link);
    let outbound = requests(&samples, &link, "outbound").with("pattern", "single");
    outbound.assert_agrees("requests", Latencies::of(&truths.client, "request"));
    let inbound = requests(&samples, &link, "inbound").with("pattern", "single");
    inbound.assert_agrees("answers", Latencies::of(&truths.server, "answer"));
}

/// What takes 5 ms between the parts is no part of the latency.
#[test]
fn header_and_body_are_one_request_that_ends_with_the_body() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    let (truths, samples) = exchange(Shape::Parts, &link);
    let outbound = requests(&samples, &link, "outbound").with("pattern", "parts");
    outbound.assert_agrees("requests", Latencies::of(&truths.client, "request"));
    let inbound = requests(&samples, &link, "inbound").with("pattern", "parts");
    inbound.assert_agrees("answers", Latencies::of(&truths.server, "answer"));
}

#[test]
fn several_requests_before_the_first_answer_are_pipelined() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    let (truths, samples) = exchange(Shape::Pipelined, &link);
    let truth = Latencies::of(&truths.client, "request");
    let outbound = requests(&samples, &link, "outbound");
    let pipelined = outbound.with("pattern", "pipelined");
    // One is told of for the three.
    pipelined.assert_agrees("turns", truth);
    assert_eq!(pipelined.events(), outbound.events());
    // The server takes one after the other: for it they are not different from others.
    let inbound = requests(&samples, &link, "inbound");
    inbound.assert_median("answers", Latencies::of(&truths.server, "answer"));
}

/// On a way that takes 10 ms there and back, nothing that comes within the next millisecond is an answer.
#[test]
fn both_ends_sending_all_the_time_is_streaming() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::delayed(Duration::from_millis(5));
    let (_, samples) = exchange(Shape::Stream, &link);
    let outbound = requests(&samples, &link, "outbound");
    let _ = requests(&samples, &link, "inbound");
    assert!(outbound.events() > 0);
    // At first and at last one end waits for the other.
    let others = outbound.events() - outbound.with("pattern", "streaming").events();
    assert!(others <= 2 * (THREADS * ROUNDS) as u64, "{others} are not streaming");
}
