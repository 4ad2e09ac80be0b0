//! What records say of connections.

use super::Pattern;
use crate::event::DETAIL_WORDS;

/// What a record of kind `TcpStarted` says beside the common parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Started {
    /// The kernel's address of the socket.
    pub id: u64,
    /// When the connection was opened, or the turn begun: the same in what becomes of it.
    pub start_ns: u64,
    /// A turn, not a connection.
    pub is_turn: bool,
}

impl Started {
    /// As words for a record's header.
    #[inline(always)]
    pub fn to_detail(self) -> [u64; DETAIL_WORDS] {
        [self.id, self.start_ns, self.is_turn as u64, 0, 0, 0, 0, 0, 0]
    }

    /// From words of a record's header.
    pub fn from_detail(detail: &[u64; DETAIL_WORDS]) -> Self {
        Self { id: detail[0], start_ns: detail[1], is_turn: detail[2] != 0 }
    }
}

/// What has happened, in a record.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A connection is there, or has failed.
    Connect = 1,
    /// One was accepted; with the stack that did.
    Accept = 2,
    /// A request was answered; with the stack that answers if this host is the one that was asked.
    Request = 3,
    /// Segments were sent again.
    Retransmit = 4,
    /// A reset was sent.
    ResetSent = 5,
    /// A reset was received.
    ResetReceived = 6,
    /// A connection ends; the latency is its last smoothed round-trip time.
    Rtt = 7,
}

impl What {
    /// The one with this number, if there is one.
    pub const fn from_u8(what: u8) -> Option<Self> {
        match what {
            1 => Some(Self::Connect),
            2 => Some(Self::Accept),
            3 => Some(Self::Request),
            4 => Some(Self::Retransmit),
            5 => Some(Self::ResetSent),
            6 => Some(Self::ResetReceived),
            7 => Some(Self::Rtt),
            _ => None,
        }
    }
}

/// What a record of kind `Tcp` says. Its `value` is a latency in nanoseconds, its `count` how many events it
/// stands for; of segments, how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happened {
    /// As of [`Started`].
    pub id: u64,
    /// When the connection was opened, or the turn begun, of which there is a [`Started`]; 0 for none.
    pub start_ns: u64,
    /// As of [`Connection::remote`].
    pub remote: [u64; 2],
    /// As of [`Connection::ports`].
    pub ports: u32,
    /// As of [`Connection::netns`].
    pub netns: u32,
    /// What has happened.
    pub what: What,
    /// Of the connection's [`Flags`], which way it was opened.
    pub direction: u32,
    /// Of requests.
    pub pattern: Pattern,
    /// Of connects: why it failed, as the kernel's number; 0 if it did not, see [`Self::has_failed`].
    pub error: u32,
    /// Of connects.
    pub has_failed: bool,
    /// Of round-trip times: when it was read.
    pub since_ns: u64,
}

impl Happened {
    /// As words for a record's header.
    #[inline(always)]
    pub const fn to_detail(self) -> [u64; DETAIL_WORDS] {
        let how = self.what as u64
            | (self.direction as u64) << 8
            | (self.pattern as u64) << 16
            | (self.has_failed as u64) << 24
            | (self.error as u64) << 32;
        let place = self.ports as u64 | (self.netns as u64) << 32;
        [self.id, self.start_ns, self.remote[0], self.remote[1], place, how, self.since_ns, 0, 0]
    }

    /// From words of a record's header. `None` if it is not known what happened.
    pub const fn from_detail(detail: &[u64; DETAIL_WORDS]) -> Option<Self> {
        let how = detail[5];
        let Some(what) = What::from_u8(how as u8) else { return None };
        Some(Self {
            id: detail[0],
            start_ns: detail[1],
            remote: [detail[2], detail[3]],
            ports: detail[4] as u32,
            netns: (detail[4] >> 32) as u32,
            what,
            direction: (how >> 8) as u8 as u32,
            pattern: Pattern::from_u8((how >> 16) as u8),
            error: (how >> 32) as u32,
            has_failed: how >> 24 & 1 != 0,
            since_ns: detail[6],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Flags;
    use super::*;

    #[test]
    fn records_say_what_has_happened() {
        let happened = Happened {
            id: 1,
            start_ns: 2,
            remote: [3, 4],
            ports: 5,
            netns: 6,
            what: What::Connect,
            direction: Flags::OUTBOUND,
            pattern: Pattern::Streaming,
            error: 111,
            has_failed: true,
            since_ns: 7,
        };
        assert_eq!(Happened::from_detail(&happened.to_detail()), Some(happened));
        assert_eq!(Happened::from_detail(&[0; DETAIL_WORDS]), None);
        let started = Started { id: 1, start_ns: 2, is_turn: true };
        assert_eq!(Started::from_detail(&started.to_detail()), started);
    }
}
