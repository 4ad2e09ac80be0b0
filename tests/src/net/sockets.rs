//! What `ss` says about open connections.

use std::net::SocketAddr;

use super::{Namespace, run};

/// One of them, seen from one end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Connection {
    /// This end.
    pub local: SocketAddr,
    /// The other one.
    pub remote: SocketAddr,
    /// The smoothed round-trip time, nanoseconds.
    pub rtt_ns: f64,
}

/// All established connections of a namespace, both ends of those within.
pub fn connections(namespace: &Namespace) -> Vec<Connection> {
    let mut ss = namespace.command("ss");
    let output = run(ss.args(["-tinHO", "state", "established"]));
    let text = String::from_utf8(output.stdout).expect("ss writes text");
    text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("ss says `{line}`"))).collect()
}

/// `RECV-Q SEND-Q LOCAL REMOTE ... rtt:RTT/VARIATION ...`, in milliseconds.
fn parse(line: &str) -> Option<Connection> {
    let mut words = line.split_whitespace();
    let local = words.nth(2)?.parse().ok()?;
    let remote = words.next()?.parse().ok()?;
    let (rtt_ms, _variation) = words.find_map(|word| word.strip_prefix("rtt:"))?.split_once('/')?;
    Some(Connection { local, remote, rtt_ns: rtt_ms.parse::<f64>().ok()? * 1e6 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_a_connection_is_read() {
        let line = "0      0      10.77.1.1:48736 10.77.1.2:59547 bbr wscale:10,10 rto:220 \
                    rtt:18.874/2.832 ato:40 minrtt:10.273";
        let connection = Connection {
            local: ([10, 77, 1, 1], 48736).into(),
            remote: ([10, 77, 1, 2], 59547).into(),
            rtt_ns: 18_874_000.0,
        };
        assert_eq!(parse(line), Some(connection));
        let line = "0 0 [fd00::1]:48736 [fd00::2]:59547 cubic rtt:0.05/0.02 minrtt:0.04";
        let connection = parse(line).unwrap();
        assert_eq!(connection.remote, "[fd00::2]:59547".parse().unwrap());
        assert_eq!(parse("0 0 10.77.1.1:48736 10.77.1.2:59547 cubic"), None);
    }
}
