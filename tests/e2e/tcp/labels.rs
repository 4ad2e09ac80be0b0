//! Who talks to whom.

use std::collections::BTreeSet;
use std::time::Duration;

use everflame_tests::net::{End, Link};
use everflame_tests::profile::Sample;
use everflame_tests::tcp::{Server, Serving, Shape, request};

use super::Chosen;
use super::workload::record;
use crate::take_turn;

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
        let (server_address, client_address): (std::net::IpAddr, std::net::IpAddr) =
            (server_address, client_address);

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
