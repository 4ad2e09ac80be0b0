//! What has begun before the recording, and sockets that are used again: right or unknown, never wrong.

use std::time::Duration;

use everflame_tests::net::{Drops, End, Link, Packets};
use everflame_tests::profile::Sample;
use everflame_tests::tcp::{How, Latencies, Server, Serving, Shape, again, connect, hold, request};
use everflame_tests::waits::{Program, Truth};

use super::Chosen;
use super::workload::{Recording, record, serve, start};
use crate::{say, take_turn};

const ANSWER: Duration = Duration::from_millis(10);

/// Either the direction is right, or it is not known. All events are of the one remote address.
fn assert_not_wrong(samples: &[Sample], end: &End, direction: &str, remote: &End) {
    let all = Chosen(samples.iter().collect()).with("netns", end.namespace.inode());
    say(&format!("{direction}: {:?}, {:?}", all.by("direction"), all.by("event")));
    let right = all.with("direction", direction).events();
    assert_eq!(right + all.with("direction", "unknown").events(), all.events());
    assert_eq!(all.with("remote", remote.v4).events(), all.events());
}

/// A server at a port that the kernel gives to nobody who asks for any: of a connection that nobody has seen come
/// about, this tells who it was that connected.
fn serve_at(link: &Link, port: u16, how: Serving) -> Server {
    Server::start(Some(&link.server.namespace), (link.server.v4, port), how)
}

/// Uses connections that were there before. Gives the number of requests that were seen at each end, and of all.
fn use_earlier(server: Server, link: &Link) -> ([u64; 2], u64) {
    let client = start(link, &hold(server.address, 20, 2, 10));
    let recording = Recording::start();
    let truth = Latencies::of(&client.finish(), "request");
    server.finish();
    let samples = recording.finish();
    assert_not_wrong(&samples, &link.client, "outbound", &link.server);
    assert_not_wrong(&samples, &link.server, "inbound", &link.client);
    let seen = [&link.client, &link.server].map(|end| {
        assert_eq!(Chosen::of(&samples, "connect", end).events(), 0);
        assert_eq!(Chosen::of(&samples, "accept", end).events(), 0);
        assert_eq!(Chosen::of(&samples, "rtt", end).events(), 20);
        let requests = Chosen::of(&samples, "request", end);
        if requests.events() > 0 {
            requests.assert_median("requests", truth);
        }
        requests.events()
    });
    say(&format!("{seen:?} of {} requests are seen", truth.count));
    (seen, truth.count)
}

#[test]
fn connections_from_before_the_recording_are_followed_if_it_is_clear_who_connected() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    let server = serve_at(&link, 80, Serving::answers_after(ANSWER));
    let (seen, all) = use_earlier(server, &link);
    assert_eq!(all, 200);
    // The first one on each may be missed.
    assert!(seen.iter().all(|seen| (180..=200).contains(seen)));
}

#[test]
fn connections_from_before_the_recording_are_not_taken_for_others() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    let server = serve(&link, Serving::answers_after(ANSWER));
    let (seen, all) = use_earlier(server, &link);
    assert!(seen.iter().all(|seen| *seen <= all));
    // The server is known, as it listens still; of the client both ports may be anybody's.
    assert_eq!(seen[0], 0);
    assert!((180..=all).contains(&seen[1]));
}

/// Its latency would be too short by what nobody has seen.
#[test]
fn what_is_under_way_when_the_recording_begins_has_no_wrong_latency() {
    let Some(_turn) = take_turn() else { return };
    const WAIT: Duration = Duration::from_secs(8);
    let link = Link::direct();
    // Of the one connection it is accepting that is under way, of the other one a request.
    let accepting = serve_at(&link, 80, Serving::Answers { accept: WAIT, answer: ANSWER });
    let requesting = serve_at(&link, 81, Serving::answers_after(WAIT));
    let clients = [&accepting, &requesting].map(|server| {
        let mut client = start(&link, &request(Shape::Single, server.address, 1, 1, 1));
        client.begin();
        client
    });
    std::thread::sleep(Duration::from_millis(200));
    let recording = Recording::start();
    let clients = clients.map(Program::wait);
    let accepted = accepting.finish();
    requesting.finish();
    let samples = recording.finish();
    assert_not_wrong(&samples, &link.client, "outbound", &link.server);
    assert_not_wrong(&samples, &link.server, "inbound", &link.client);
    let lengths = |event, end| {
        let chosen = Chosen::of(&samples, event, end);
        chosen.0.iter().map(|sample| sample.values[super::LATENCY] as f64).collect::<Vec<f64>>()
    };
    let check = |name: &str, seen: Vec<f64>, truths: &[f64]| {
        say(&format!("{name} of {seen:?} ns, of {truths:?} ns in truth"));
        for seen in seen {
            assert!(truths.iter().any(|truth| (seen - truth).abs() <= super::MILLISECOND_NS));
        }
    };
    check("accepts", lengths("accept", &link.server), &[truth_ns(&accepted, "accept")]);
    let requests = clients.map(|client| truth_ns(&client, "request"));
    check("requests", lengths("request", &link.client), &requests);
    // Nothing of what the other server answers was seen before.
    check("answers", lengths("request", &link.server), &[truth_ns(&accepted, "answer")]);
}

/// A median that a program has measured.
fn truth_ns(truth: &Truth, word: &str) -> f64 {
    Latencies::of(truth, word).median_ns as f64
}

#[test]
fn connect_that_is_under_way_when_the_recording_begins_has_no_wrong_latency() {
    let Some(_turn) = take_turn() else { return };
    const CONNECTS: u64 = 20;
    let link = Link::direct();
    let server = serve(&link, Serving::answers_after(Duration::ZERO));
    let drops = match Drops::one_in(1, Packets::Syn, &link.server.namespace) {
        Ok(drops) => drops,
        Err(reason) => return say(&format!("SKIPPED: no packets can be dropped here: {reason}")),
    };
    let mut client = start(&link, &request(Shape::Single, server.address, CONNECTS as usize, 1, 5));
    client.begin();
    std::thread::sleep(Duration::from_millis(200));
    let recording = Recording::start();
    drop(drops);
    let truth = Latencies::of(&client.wait(), "connect");
    server.finish();
    let samples = recording.finish();
    assert_eq!(truth.count, CONNECTS);
    assert_not_wrong(&samples, &link.client, "outbound", &link.server);
    let connects = Chosen::of(&samples, "connect", &link.client);
    say(&format!("{} of {CONNECTS} connects are seen", connects.events()));
    if connects.events() > 0 {
        connects.assert_median("connects", truth);
    }
    // Of the server's side all has happened within the recording.
    let accepts = Chosen::of(&samples, "accept", &link.server);
    accepts.with("direction", "inbound").assert_count("accepts", CONNECTS);
}

#[test]
fn request_that_goes_on_at_the_end_is_not_counted_as_answered() {
    let Some(_turn) = take_turn() else { return };
    const WAIT: Duration = Duration::from_secs(4);
    let link = Link::direct();
    let server = serve(&link, Serving::answers_after(WAIT));
    let recording = Recording::start();
    let mut client = start(&link, &request(Shape::Single, server.address, 4, 1, 1));
    client.begin();
    std::thread::sleep(WAIT / 4);
    let samples = recording.finish();
    client.wait();
    assert_eq!(Chosen::of(&samples, "connect", &link.client).events(), 4);
    for end in [&link.client, &link.server] {
        assert_eq!(Chosen::of(&samples, "request", end).events(), 0);
    }
}

/// One socket, and so one cookie, for connections to a fast and to a slow server in turn.
#[test]
fn connections_of_a_socket_that_is_used_again_are_told_apart() {
    let Some(_turn) = take_turn() else { return };
    const ROUNDS: usize = 100;
    const REQUESTS: usize = 3;
    let link = Link::direct();
    let (fast, slow) = (
        serve(&link, Serving::answers_after(Duration::ZERO)),
        serve(&link, Serving::answers_after(ANSWER)),
    );
    let ports = [fast.address.port(), slow.address.port()];
    let client = again(fast.address, ports[1], ROUNDS, REQUESTS);
    let (truths, samples) = record(&link, &client, slow);
    let fast = fast.finish();
    let connects = Chosen::of(&samples, "connect", &link.client);
    let requests = Chosen::of(&samples, "request", &link.client);
    let accepts = Chosen::of(&samples, "accept", &link.server);
    let answers = Chosen::of(&samples, "request", &link.server);
    let count = |truth, word| Latencies::of(truth, word).count;
    for (port, truth) in ports.into_iter().zip([&fast, &truths.server]) {
        connects.with("remote_port", port).assert_count("connects", ROUNDS as u64);
        accepts.with("local_port", port).assert_count("accepts", count(truth, "accept"));
        let requests = requests.with("remote_port", port).with("direction", "outbound");
        requests.assert_count("requests", (ROUNDS * REQUESTS) as u64);
        let answers = answers.with("local_port", port).with("direction", "inbound");
        answers.assert_agrees("answers", Latencies::of(truth, "answer"));
    }
    let slow = requests.with("remote_port", ports[1]);
    slow.assert_agrees("requests", Latencies::of(&truths.client, "request"));
    connects.assert_called_by("connect_to_server");
}

/// The kernel's memory for a socket that is gone is used for the next one, mostly by another process.
#[test]
fn sockets_at_the_same_place_are_told_apart() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    let servers = [
        serve(&link, Serving::answers_after(Duration::ZERO)),
        serve(&link, Serving::answers_after(ANSWER)),
    ];
    let recording = Recording::start();
    let mut clients = [0, 1].map(|at| {
        let rounds = [1000, 200][at];
        start(&link, &request(Shape::Single, servers[at].address, 1, rounds, 1))
    });
    let refused = connect(How::Blocking, (link.server.v4, 9).into(), 1, 5000);
    let refused = start(&link, &refused);
    clients.iter_mut().for_each(Program::begin);
    let refused = refused.finish();
    let pids = clients.each_ref().map(Program::pid);
    let truths = clients.map(Program::wait);
    let ports = servers.each_ref().map(|server| server.address.port());
    let _ = servers.map(Server::finish);
    let samples = recording.finish();
    let connects = Chosen::of(&samples, "connect", &link.client);
    let refused = Latencies::of(&refused, "ECONNREFUSED").count;
    connects.with("error", "ECONNREFUSED").assert_count("refused", refused);
    for ((pid, truth), port) in pids.into_iter().zip(&truths).zip(ports) {
        let of_client = connects.with("remote_port", port).with("error", "");
        of_client.assert_count("connects", Latencies::of(truth, "connect").count);
        of_client.with("pid", pid).assert_count("of this process", of_client.events());
        let requests = Chosen::of(&samples, "request", &link.client).with("pid", pid);
        assert_eq!(requests.with("remote_port", port).events(), requests.events());
        requests.assert_agrees("requests", Latencies::of(truth, "request"));
    }
}
