//! Segments that are sent again, against the kernel's own count of them.

use std::process::Command;
use std::time::Duration;

use everflame_tests::net::{Drops, End, Link, Packets};
use everflame_tests::profile::Sample;
use everflame_tests::tcp::{How, Server, Serving, Shape, connect, request};

use super::Chosen;
use super::workload::{Recording, run, serve};
use crate::{say, take_turn};

/// How far off counts may be.
const TOLERANCE: f64 = 0.02;

/// What the two ends of a link sent again while something was going on, as the kernel counts it; and what was
/// recorded.
struct Lossy {
    link: Link,
    counted: [u64; 2],
    samples: Vec<Sample>,
    /// Where the server listens.
    port: u16,
}

/// Runs a client while one in `of` packets that come into one end are lost. `None`: that cannot be done here.
fn lose(
    of: u32,
    packets: Packets,
    into: fn(&Link) -> &End,
    client: impl FnOnce(&Server) -> Command,
) -> Option<Lossy> {
    let link = Link::direct();
    let server = serve(&link, Serving::answers_after(Duration::ZERO));
    let counters =
        || [&link.client, &link.server].map(|end| end.namespace.counter("Tcp", "RetransSegs"));
    let recording = Recording::start();
    let before = counters();
    let drops = match Drops::one_in(of, packets, &into(&link).namespace) {
        Ok(drops) => drops,
        Err(reason) => {
            say(&format!("SKIPPED: no packets can be dropped here: {reason}"));
            return None;
        }
    };
    run(&link, &client(&server));
    let lost = drops.count();
    drop(drops);
    let port = server.address.port();
    server.finish();
    let after = counters();
    let samples = recording.finish();
    let counted = [after[0] - before[0], after[1] - before[1]];
    say(&format!("{lost} packets of {packets:?} were lost"));
    assert!(lost > 0);
    Some(Lossy { link, counted, samples, port })
}

impl Lossy {
    /// Compares both ends.
    fn assert_agrees(&self) {
        for (name, end, counted) in [
            ("the client", &self.link.client, self.counted[0]),
            ("the server", &self.link.server, self.counted[1]),
        ] {
            let seen = Chosen::of(&self.samples, "retransmit", end).events();
            say(&format!("{name} has sent {counted} again, {seen} are seen"));
            assert!((seen as f64 - counted as f64).abs() <= TOLERANCE * counted as f64);
        }
    }
}

#[test]
fn syns_that_are_sent_again_are_counted() {
    let Some(_turn) = take_turn() else { return };
    let client = |server: &Server| connect(How::Blocking, server.address, 100, 200);
    let Some(lossy) = lose(2, Packets::Syn, |link| &link.server, client) else { return };
    assert!(lossy.counted[0] >= 100);
    lossy.assert_agrees();
    let syns = Chosen::of(&lossy.samples, "retransmit", &lossy.link.client);
    let of_server = syns.with("remote", lossy.link.server.v4).with("remote_port", lossy.port);
    assert_eq!(of_server.with("direction", "outbound").events(), syns.events());
}

#[test]
fn answers_to_syns_that_are_sent_again_are_counted() {
    let Some(_turn) = take_turn() else { return };
    let client = |server: &Server| connect(How::Blocking, server.address, 100, 200);
    let Some(lossy) = lose(2, Packets::SynAck, |link| &link.client, client) else { return };
    assert!(lossy.counted[1] >= 100);
    lossy.assert_agrees();
    let answers = Chosen::of(&lossy.samples, "retransmit", &lossy.link.server);
    let of_server = answers.with("remote", lossy.link.client.v4).with("local_port", lossy.port);
    assert_eq!(of_server.with("direction", "inbound").events(), answers.events());
}

/// Packets are large here: each one that is lost is many segments.
#[test]
fn data_that_is_sent_again_is_counted_by_segments() {
    let Some(_turn) = take_turn() else { return };
    let client = |server: &Server| request(Shape::Bulk, server.address, 8, 1, 60);
    for (into, sender) in [
        ((|link| &link.server) as fn(&Link) -> &End, 0),
        ((|link| &link.client) as fn(&Link) -> &End, 1),
    ] {
        let Some(lossy) = lose(40, Packets::Established, into, client) else { return };
        assert!(lossy.counted[sender] >= 500);
        lossy.assert_agrees();
    }
}
