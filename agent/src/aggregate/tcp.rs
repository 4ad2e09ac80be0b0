//! What happens to TCP connections, added up by stack, other end and how long it took.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use everflame_agent_common::tcp::{Flags, Happened, Pattern, UNFINISHED, UNSENT, What};
use everflame_profile::tcp::{
    ABORTED, Direction, Event, OTHER, UNFINISHED as UNFINISHED_NAME, UNSENT as UNSENT_NAME,
};

use super::{Aggregator, IoKey, StackKey, Totals};
use crate::collect::{Io, Sample};
use crate::identity::ProcessIdentity;
use crate::process::Process;

/// Other ends that are told apart, of each process in each window.
pub const MAX_REMOTES: usize = 1000;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remote {
    /// Its address, as IPv6 has it.
    Address(Ipv6Addr),
    /// One of those that are not told apart.
    Other,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => match address.to_ipv4_mapped() {
                // Of what is sent without a socket it is not known.
                Some(address) if address.is_unspecified() => f.write_str("unknown"),
                Some(address) => write!(f, "{address}"),
                None => write!(f, "{address}"),
            },
            Self::Other => f.write_str(OTHER),
        }
    }
}

/// How a connect ended that did not succeed, as the kernel numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectError(u32);

impl ConnectError {
    /// Names of what connects fail with.
    const NAMES: [(i32, &str); 13] = [
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::ECONNABORTED, "ECONNABORTED"),
        (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (libc::EHOSTDOWN, "EHOSTDOWN"),
        (libc::ENETDOWN, "ENETDOWN"),
        (libc::ENOPROTOOPT, "ENOPROTOOPT"),
        (libc::EACCES, "EACCES"),
        (libc::EPERM, "EPERM"),
        (libc::EPROTO, "EPROTO"),
    ];
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = i32::try_from(self.0).unwrap_or(0);
        match self.0 {
            0 => f.write_str(ABORTED),
            UNFINISHED => f.write_str(UNFINISHED_NAME),
            UNSENT => f.write_str(UNSENT_NAME),
            _ => match Self::NAMES.iter().find(|(known, _)| *known == number) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "errno {number}"),
            },
        }
    }
}

/// What events are told apart by, beside their stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpKey {
    /// What happened.
    pub event: Event,
    /// Who connected.
    pub direction: Direction,
    /// The other end.
    pub remote: Remote,
    /// The port that was connected to; `None` if it is not known which one that is.
    pub port: Option<u16>,
    /// The inode number of the network namespace.
    pub netns: u32,
    /// Of requests.
    pub pattern: Option<Pattern>,
    /// Of connects that failed.
    pub error: Option<ConnectError>,
    /// Of resets: whether it was this end's.
    pub is_sent: Option<bool>,
    /// The lower bound of what the latency is counted in, in nanoseconds.
    pub latency: u64,
}

/// The greatest number of 1, 1.25, 1.5 or 1.75 times a power of two that `ns` is not below: fine enough for
/// quantiles, and few.
fn lower_bound(ns: u64) -> u64 {
    let Some(power) = ns.checked_ilog2() else { return 0 };
    let base = 1 << power;
    match base >> 2 {
        0 => base,
        quarter => base + (ns - base) / quarter * quarter,
    }
}

fn key(happened: &Happened, latency_ns: u64) -> TcpKey {
    let mut address = [0; 16];
    address[..8].copy_from_slice(&happened.remote[0].to_ne_bytes());
    address[8..].copy_from_slice(&happened.remote[1].to_ne_bytes());
    let [high, low] = [happened.ports >> 16, happened.ports & 0xffff].map(|port| port as u16);
    let (direction, port) = match happened.direction {
        Flags::OUTBOUND => (Direction::Outbound, Some(high)),
        Flags::INBOUND => (Direction::Inbound, Some(low)),
        _ => (Direction::Unknown, None),
    };
    let event = match happened.what {
        What::Connect => Event::Connect,
        What::Accept => Event::Accept,
        What::Request => Event::Request,
        What::Rtt => Event::Rtt,
        What::Retransmit => Event::Retransmit,
        What::ResetSent | What::ResetReceived => Event::Reset,
    };
    TcpKey {
        event,
        direction,
        remote: Remote::Address(Ipv6Addr::from(address)),
        port,
        netns: happened.netns,
        pattern: (event == Event::Request).then_some(happened.pattern),
        error: happened.has_failed.then_some(ConnectError(happened.error)),
        is_sent: (event == Event::Reset).then_some(happened.what == What::ResetSent),
        latency: lower_bound(latency_ns),
    }
}

impl Aggregator {
    /// Adds something that has happened to a connection of `process`.
    pub fn add_connection_event(
        &mut self,
        mut sample: Sample,
        process: &mut Process,
        identify: impl FnOnce(&mut Process) -> Arc<ProcessIdentity>,
    ) {
        let Some(&Io::Tcp(happened)) = sample.io.as_deref() else { return };
        self.window.connections += 1;
        self.count(&sample);
        let mut tcp = key(&happened, sample.value);
        let index = self.process(sample.pid, process, identify);
        let remotes = &mut self.window.processes[index].remotes;
        if remotes.len() < MAX_REMOTES {
            remotes.insert(happened.remote);
        } else if !remotes.contains(&happened.remote) {
            // Its port would tell as many apart.
            tcp.remote = Remote::Other;
        }
        let value = sample.value.saturating_mul(sample.count);
        let totals = Totals { count: sample.count, value };
        let key = StackKey { io: Some(IoKey::Tcp(tcp)), ..self.key(&mut sample, process) };
        let bytes = key.bytes() + size_of::<(Arc<StackKey>, Totals)>();
        let known = &mut self.window.processes[index].tcp;
        if let Some(sum) = known.get_mut(&key) {
            return sum.add(totals);
        }
        self.window.stack_bytes += bytes;
        known.insert(Arc::new(key), totals);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_counted_in_quarters_of_powers_of_two() {
        let bounds = [0, 1, 3, 5, 7, 8, 9, 10, 15, 1_000_000].map(lower_bound);
        assert_eq!(bounds, [0, 1, 2, 5, 7, 8, 8, 10, 14, 917_504]);
    }

    #[test]
    fn addresses_look_as_they_are_written() {
        let remote = |address: &str| Remote::Address(address.parse().unwrap()).to_string();
        assert_eq!(remote("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(remote("::ffff:0.0.0.0"), "unknown");
        assert_eq!(remote("fd00::1"), "fd00::1");
        assert_eq!(Remote::Other.to_string(), "other");
    }

    #[test]
    fn errors_have_their_names() {
        let names = [111, 110, 0, UNFINISHED, 4711].map(|number| ConnectError(number).to_string());
        assert_eq!(names, ["ECONNREFUSED", "ETIMEDOUT", "aborted", "unfinished", "errno 4711"]);
    }
}
