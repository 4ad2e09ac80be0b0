//! Two hosts, which are namespaces, and a cable between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use crate::waits::Program;
use crate::workload::workload;

use super::{Namespace, random, run};

/// A client and a server that reach each other, and nobody else.
#[derive(Debug)]
pub struct Link {
    /// Who connects.
    pub client: End,
    /// Who listens.
    pub server: End,
    /// What keeps packets for as long as they are to take.
    _delay: Option<Program>,
}

/// One end of it.
#[derive(Debug)]
pub struct End {
    /// The host.
    pub namespace: Namespace,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its other one.
    pub v6: Ipv6Addr,
}

impl End {
    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// An address of this network that nobody has.
    pub fn nobody(&self, port: u16) -> SocketAddr {
        let [a, b, c, _] = self.v4.octets();
        SocketAddr::new(Ipv4Addr::new(a, b, c, 77).into(), port)
    }

    fn add_addresses(&self, device: &str) {
        self.namespace.ip(&["addr", "add", &format!("{}/24", self.v4), "dev", device]);
        let v6 = format!("{}/64", self.v6);
        // It is not asked whether others have it: until that is answered it could not be used.
        self.namespace.ip(&["addr", "add", &v6, "dev", device, "nodad"]);
        self.namespace.ip(&["link", "set", device, "up"]);
    }
}

impl Link {
    /// One that takes as good as no time.
    pub fn direct() -> Self {
        let (client, server) = ends();
        let mut veth = Command::new("ip");
        veth.args(["link", "add", "veth", "netns", client.namespace.name(), "type", "veth"]);
        run(veth.args(["peer", "name", "veth", "netns", server.namespace.name()]));
        client.add_addresses("veth");
        server.add_addresses("veth");
        Self { client, server, _delay: None }
    }

    /// One that takes so long each way. A program of the test's own carries the packets, as not every kernel
    /// has the queueing discipline `netem`.
    pub fn delayed(one_way: Duration) -> Self {
        let (client, server) = ends();
        let mut delay = Command::new(workload("delayed_link"));
        delay.args([client.namespace.path(), server.namespace.path()]);
        let delay = Program::start(delay.arg(one_way.as_micros().to_string()));
        client.add_addresses("delayed");
        server.add_addresses("delayed");
        Self { client, server, _delay: Some(delay) }
    }
}

/// Two that are not connected yet.
fn ends() -> (End, End) {
    let [_, x, y, a, b, ..] = random().to_be_bytes();
    let end = |host: u8| End {
        namespace: Namespace::new(),
        v4: Ipv4Addr::new(10, x, y, host),
        v6: Ipv6Addr::new(
            0xfd00,
            u16::from_be_bytes([x, y]),
            u16::from_be_bytes([a, b]),
            0,
            0,
            0,
            0,
            host.into(),
        ),
    };
    (end(1), end(2))
}
