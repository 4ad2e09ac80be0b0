//! What the samples of a profile of kind `tcp` say beside their stacks. Dashboards and scripts rely on
//! these names.

use serde::{Serialize, Serializer};

/// What happened, see [`Event`].
pub const EVENT: &str = "event";

/// The address of the other end, or [`OTHER`].
pub const REMOTE: &str = "remote";

/// Its port, where this host is the one that connected: those of clients are any.
pub const REMOTE_PORT: &str = "remote_port";

/// The port that was connected to, where that is this host's.
pub const LOCAL_PORT: &str = "local_port";

/// Who connected, see [`Direction`].
pub const DIRECTION: &str = "direction";

/// The inode number of the network namespace, as in /proc/PID/ns/net.
pub const NETNS: &str = "netns";

/// Of requests: how they and their answers follow each other, see [`Pattern`].
pub const PATTERN: &str = "pattern";

/// Of connects that failed: the error's name, as `ECONNREFUSED`. [`ABORTED`] and [`UNFINISHED`] are no errors.
pub const ERROR: &str = "error";

/// Of resets: [`SENT`] or [`RECEIVED`].
pub const RESET: &str = "reset";

/// Of events that take time: the lower bound of what their latency is counted in, in nanoseconds. Bounds are
/// powers of two, and three between each and the next at equal distances.
pub const LATENCY: &str = "latency";

/// In place of a [`REMOTE`]: one of those beyond the most that are told apart.
pub const OTHER: &str = "other";

/// In place of an [`ERROR`]: the program gave up.
pub const ABORTED: &str = "aborted";

/// In place of an [`ERROR`]: it failed before a SYN was sent, mostly as no port was free (`EADDRNOTAVAIL`).
pub const UNSENT: &str = "unsent";

/// In place of an [`ERROR`]: it went on when the recording ended.
pub const UNFINISHED: &str = "unfinished";

/// A [`RESET`] that this host sent.
pub const SENT: &str = "sent";

/// One that came from the other end.
pub const RECEIVED: &str = "received";

/// What a sample counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// Attempts to connect: from the first SYN to when the connection is there, or has failed.
    Connect,
    /// Connections that were accepted: from when they were there to `accept`.
    Accept,
    /// Smoothed round-trip times; one for each connection that was used in a window.
    Rtt,
    /// Requests: of who connected, from the last that was sent to the first that comes back; of the other side,
    /// from the last that was received to the first that is sent.
    Request,
    /// Segments that were sent again. They have no latency.
    Retransmit,
    /// Resets. They have no latency.
    Reset,
}

impl Event {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 6] =
        [Self::Connect, Self::Accept, Self::Rtt, Self::Request, Self::Retransmit, Self::Reset];

    /// As [`EVENT`] has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Rtt => "rtt",
            Self::Request => "request",
            Self::Retransmit => "retransmit",
            Self::Reset => "reset",
        }
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Which end of a connection this host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The one that connected.
    Outbound,
    /// The one that accepted.
    Inbound,
    /// Not known, as it was there before.
    #[default]
    Unknown,
}

impl Direction {
    /// As [`DIRECTION`] has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Unknown => "unknown",
        }
    }
}

impl Serialize for Direction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How requests and their answers follow each other on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// One was sent, and one answered.
    Single,
    /// What was sent before the answer came in several pieces, and the answer in one.
    Parts,
    /// Several were sent before the first was answered, and answered one after the other: the latency is that
    /// of the first one.
    Pipelined,
    /// Both ends send without that one waits for the other: the latency is not one of a request.
    Streaming,
}

impl Pattern {
    /// As [`PATTERN`] has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Parts => "parts",
            Self::Pipelined => "pipelined",
            Self::Streaming => "streaming",
        }
    }
}
