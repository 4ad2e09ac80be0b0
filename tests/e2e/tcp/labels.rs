//! Who talks to whom.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use everflame_tests::net::{End, Link, Namespace};
use everflame_tests::profile::Sample;
use everflame_tests::tcp::{How, Latencies, Server, Serving, Shape, connect, request};
use everflame_tests::waits::Program;

use super::Chosen;
use super::workload::{Recording, record};
use crate::{say, take_turn};

/// The values of a label, of all that happened at one end.
fn values<'a>(samples: &'a [Sample], end: &End, label: &str) -> BTreeSet<&'a str> {
    let of_end = Chosen(samples.iter().collect()).with("netns", end.namespace.inode());
    of_end.by(label).into_keys().collect()
}

/// Both ends say the same of each other: the server's port and no other, and addresses as people write them.
#[test]
fn both_ends_are_named_without_the_ports_of_clients() {
    let Some(_turn) = take_turn() else { return };
    let link = Link::direct();
    // Also a server that listens at addresses of any kind, where IPv4 is part of IPv6.
    let any = "::".parse().unwrap();
    let v4 = (link.server.v4.into(), link.client.v4.into());
    let v6 = (link.server.v6.into(), link.client.v6.into());
    for (listening, (server_address, client_address)) in
        [(v4.0, v4), (v6.0, v6), (any, v4), (any, v6)]
    {
        let how = Serving::answers_after(Duration::from_millis(1));
        let mut server = Server::start(Some(&link.server.namespace), (listening, 0), how);
        server.address.set_ip(server_address);
        let (port, pid) = (server.address.port().to_string(), server.pid().to_string());
        let client = request(Shape::Single, server.address, 4, 10, 5);
        let (_, samples) = record(&link, &client, server);
        let (server_address, client_address): (IpAddr, IpAddr) = (server_address, client_address);

        let of_client = |label| values(&samples, &link.client, label);
        assert_eq!(of_client("event"), ["connect", "request", "rtt"].into());
        assert_eq!(of_client("direction"), ["outbound"].into());
        assert_eq!(of_client("remote"), [server_address.to_string().as_str()].into());
        assert_eq!(of_client("remote_port"), [port.as_str()].into());
        assert_eq!(of_client("local_port"), [""].into());
        assert_eq!(of_client("comm"), ["tcp_client"].into());

        let of_server = |label| values(&samples, &link.server, label);
        assert_eq!(of_server("event"), ["accept", "request", "rtt"].into());
        assert_eq!(of_server("direction"), ["inbound"].into());
        assert_eq!(of_server("remote"), [client_address.to_string().as_str()].into());
        assert_eq!(of_server("remote_port"), [""].into());
        assert_eq!(of_server("local_port"), [port.as_str()].into());
        assert_eq!(of_server("comm"), ["tcp_server"].into());
        assert_eq!(of_server("pid"), [pid.as_str()].into());
    }
}

/// A process that talks to very many does not make the profile as large.
#[test]
fn addresses_beyond_the_most_that_are_told_apart_are_other() {
    let Some(_turn) = take_turn() else { return };
    const MAX_REMOTES: usize = 1000;
    const ADDRESSES: usize = 1500;
    let namespace = Namespace::new();
    let any = (Ipv4Addr::UNSPECIFIED, 0);
    let server = Server::start(Some(&namespace), any, Serving::Drains);
    let recording = Recording::start();
    let first = (Ipv4Addr::new(127, 1, 0, 1), server.address.port()).into();
    let client = connect(How::Spread, first, 4, ADDRESSES);
    let client = Program::start(&mut namespace.enter(&client));
    let truth = Latencies::of(&client.finish(), "connect").count;
    server.finish();
    let samples = recording.finish();
    assert_eq!(truth, ADDRESSES as u64);
    let all = Chosen(samples.iter().collect()).with("netns", namespace.inode());
    let connects = all.with("event", "connect");
    connects.assert_count("connects", truth);
    let remotes = all.with("comm", "tcp_client").by("remote");
    let other = connects.with("remote", "other").events();
    say(&format!("{} addresses, and {other} connects to others", remotes.len() - 1));
    assert_eq!(remotes.len(), MAX_REMOTES + 1);
    assert_eq!(other, (ADDRESSES - MAX_REMOTES) as u64);
    assert_eq!(connects.by("remote_port").len(), 1);
}
