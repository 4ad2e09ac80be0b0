//! How many connections there are.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use everflame_tests::net::Link;
use everflame_tests::profile::read;
use everflame_tests::program::{everflame, scratch_dir};
use everflame_tests::tcp::{How, Latencies, Server, Serving, Shape, connect, request};
use everflame_tests::waits::Program;

use super::Chosen;
use super::workload::{Recording, record};
use crate::take_turn;

const CONNECTIONS: usize = 10_000;
const THREADS: usize = 16;

#[test]
fn connects_and_accepts_are_as_many_as_both_ends_count() {
    let Some(_turn) = take_turn() else { return };
    // One that is new: a second run would have to look for ports that are free again.
    for how in [How::Blocking, How::Nonblocking] {
        let link = Link::direct();
        let address = (link.server.v6, 0);
        let server = Server::start(Some(&link.server.namespace), address, Serving::Drains);
        let client = connect(how, server.address, THREADS, CONNECTIONS);
        let (truths, samples) = record(&link, &client, server);
        let truth = Latencies::of(&truths.client, "connect");
        assert_eq!(truth.count, CONNECTIONS as u64);
        let connects = Chosen::of(&samples, "connect", &link.client);
        connects.assert_count("connects", truth.count);
        assert_eq!(connects.by("error"), [("", truth.count)].into());
        connects.assert_called_by("connect_to_server");
        let accepts = Chosen::of(&samples, "accept", &link.server);
        let accepted = truths.server.number("accept", "count");
        assert_eq!(accepted, truth.count);
        accepts.assert_count("accepts", accepted);
        accepts.assert_called_by("accept_client");
    }
}

/// Two clients over the loopback, of which one is recorded.
#[test]
fn only_the_process_that_is_asked_for_is_recorded() {
    let Some(_turn) = take_turn() else { return };
    let how = Serving::answers_after(Duration::ZERO);
    let server = Server::start(None, (Ipv4Addr::LOCALHOST, 0), how);
    let client = || Program::start(&mut request(Shape::Single, server.address, 4, 50, 2));
    let (followed, other) = (client(), client());
    let pid = followed.pid().to_string();
    let recording = Recording::start_with(&["--pid", &pid]);
    other.finish();
    let truth = followed.finish();
    let samples = recording.finish();
    assert!(samples.iter().all(|sample| sample.label("pid") == pid));
    let all = Chosen(samples.iter().collect());
    let connects = Latencies::of(&truth, "connect");
    all.with("event", "connect").assert_count("connects", connects.count);
    all.with("event", "accept").assert_count("accepts", 0);
    let requests = all.with("event", "request");
    requests.assert_agrees("requests", Latencies::of(&truth, "request"));
    assert_eq!(requests.by("direction").into_keys().collect::<Vec<_>>(), ["outbound"]);
}

/// The same of the server.
#[test]
fn connections_that_a_process_accepts_are_its_own() {
    let Some(_turn) = take_turn() else { return };
    let (accept, answer) = (Duration::from_millis(30), Duration::from_millis(10));
    let how = Serving::Answers { accept, answer };
    let server = Server::start(None, (Ipv4Addr::LOCALHOST, 0), how);
    let pid = server.pid().to_string();
    let recording = Recording::start_with(&["--pid", &pid]);
    Program::start(&mut request(Shape::Single, server.address, 8, 20, 2)).finish();
    let truth = server.finish();
    let samples = recording.finish();
    assert!(samples.iter().all(|sample| sample.label("pid") == pid));
    let all = Chosen(samples.iter().collect());
    all.with("event", "connect").assert_count("connects", 0);
    all.with("event", "accept").assert_agrees("accepts", Latencies::of(&truth, "accept"));
    let requests = all.with("event", "request").with("direction", "inbound");
    requests.assert_agrees("answers", Latencies::of(&truth, "answer"));
}

#[test]
fn command_is_recorded_from_its_beginning() {
    let Some(_turn) = take_turn() else { return };
    let server = Server::start(None, (Ipv4Addr::LOCALHOST, 0), Serving::Drains);
    let client = connect(How::Blocking, server.address, 4, 1000);
    let output = scratch_dir().join("tcp-command.pb.gz");
    let mut record = everflame();
    record.args(["record", "--kind", "tcp", "-o"]).arg(&output).arg("--");
    append(&mut record, &client);
    let truth = Program::start(&mut record).finish();
    let (_, samples) = read(&output);
    let connects = Chosen(samples.iter().collect()).with("event", "connect");
    connects.assert_count("connects", Latencies::of(&truth, "connect").count);
    assert_eq!(connects.with("comm", "tcp_client").events(), connects.events());
    assert_eq!(connects.by("pid").len(), 1);
    // The first ones are over before the tables are made that tell who calls.
    assert!(connects.calling("connect_to_server").events() > 0);
}

fn append(command: &mut Command, program: &Command) {
    command.arg(program.get_program()).args(program.get_args());
}
