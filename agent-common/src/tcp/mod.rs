//! TCP: connections, with the code that opened or accepted them, and requests on them, with the code that
//! sends.
//!
//! A connection has a value in a map, by the kernel's address of its socket, from when it is opened (or first
//! seen) until the socket is destroyed. Stacks are handed over when they can be taken, in the context of the
//! task that opens or sends ([`Kind::TcpStarted`](crate::event::Kind::TcpStarted)); what becomes of it is seen
//! later, mostly in an interrupt ([`Kind::Tcp`](crate::event::Kind::Tcp)). The agent puts the two together.
//!
//! What asks is called a request here, and what comes back an answer: of the side that connected, requests are
//! sent and answers received, of the other one it is the other way round. A turn is what is asked until it is
//! answered. There is no telling from outside where a request in a stream of bytes ends, but turns are seen.

mod layout;
mod record;
#[cfg(test)]
mod tests;

pub use self::layout::{TCP_LAYOUT_WORDS, TcpLayout};
pub use self::record::{Happened, Started, What};

/// What is kept of a connection; a map value.
///
/// What is written each time that something is sent lies together, in the one cache line that a kernel's entry of a
/// map has from the second word of its value on; and entries have a whole number of lines, as the two ends of a
/// connection on one host are used on different CPUs. What that saves is too little to be seen (docs/benchmarks.md).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// When it was opened, or first seen, on CLOCK_MONOTONIC; of one that was accepted, when it was there.
    pub opened_ns: u64,
    /// Its process in the upper half, the thread in the lower half; 0: not known yet.
    pub owner: u64,
    /// [`Flags`].
    pub flags: u32,
    /// When the round-trip time was read, in the kernel's ticks.
    pub rtt_ticks: u32,
    /// How often it was asked in the turn.
    pub requests: u16,
    /// How often it was answered.
    pub answers: u16,
    /// Up to where what was received had been read when something was last sent (`tcp_sock.copied_seq`). Only
    /// of turns that are not followed.
    pub copied: u32,
    /// How many turns the present one stands for, if it was chosen.
    pub turns: u32,
    /// How many connections it stands for.
    pub opens: u32,
    /// When the turn began, if it was chosen.
    pub first_ns: u64,
    /// When it was last asked. Once it is answered, the time from then to the first answer.
    pub last_ns: u64,
    /// When the last answer came.
    pub answered_ns: u64,
    /// From the first request to the first answer.
    pub waited_ns: u64,
    /// When the round-trip time was read.
    pub rtt_ns: u64,
    /// The other end's address; of IPv4 as IPv6 has it (`::ffff:1.2.3.4`), in network byte order.
    pub remote: [u64; 2],
    /// The name of the thread that opened or accepted it.
    pub thread_name: [u64; 2],
    /// The other end's port in the upper half, this one's in the lower half.
    pub ports: u32,
    /// The inode number of its network namespace.
    pub netns: u32,
    /// Smoothed round-trip time, in microseconds; 0: not known.
    pub rtt_us: u32,
    /// The shortest one that the kernel remembers.
    pub min_rtt_us: u32,
    /// Always 0. With it, and its key and 48 bytes of the kernel's, an entry has three cache lines.
    pub padding: u64,
}

const _: () = assert!(size_of::<Connection>() == CONNECTION_WORDS * 8);
const _: () = assert!((48 + 8 + size_of::<Connection>()).is_multiple_of(64));

/// Words of a [`Connection`].
pub const CONNECTION_WORDS: usize = 17;

/// Bits in [`Connection::flags`].
pub struct Flags;

impl Flags {
    /// This host has connected.
    pub const OUTBOUND: u32 = 1;
    /// This host has accepted.
    pub const INBOUND: u32 = 2;
    /// The stack that opened or accepted it was handed over.
    pub const HAS_STACK: u32 = 4;
    /// `accept` has returned it.
    pub const ACCEPTED: u32 = 8;
    /// It is not there yet.
    pub const CONNECTING: u32 = 16;
    /// The turn is followed.
    pub const CHOSEN: u32 = 32;
    /// The turn is being answered: what is asked next is another one.
    pub const ANSWERING: u32 = 64;
    /// Of an answer it is not known yet what it answers.
    pub const PENDING: u32 = 128;
    /// Requests are sent before others are answered.
    pub const PIPELINED: u32 = 256;
    /// Nobody has asked for it.
    pub const IGNORED: u32 = 512;
    /// It waits for connections.
    pub const LISTENING: u32 = 1024;
    /// In some turn there was time to answer the first request before the last was sent.
    pub const SPACED: u32 = 2048;
    /// In some turn with one request another answer came long after the first.
    pub const PUSHED: u32 = 4096;
    /// Of the side that accepts: the next turn is going to be followed.
    pub const ARMED: u32 = 8192;
    /// It is among those of which it matters what is received.
    pub const MARKED: u32 = 16384;
    /// Both: neither end waits for the other.
    pub const STREAMING: u32 = Self::SPACED | Self::PUSHED;
}

/// How requests and answers follow each other, in a record.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// One request, one answer.
    #[default]
    Single = 0,
    /// Several pieces, answered at once.
    Parts = 1,
    /// Several requests, answered one after the other.
    Pipelined = 2,
    /// Neither waits for the other.
    Streaming = 3,
}

impl Pattern {
    const fn from_u8(pattern: u8) -> Self {
        match pattern {
            1 => Self::Parts,
            2 => Self::Pipelined,
            3 => Self::Streaming,
            _ => Self::Single,
        }
    }
}

/// A turn whose latency is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// When it began.
    pub first_ns: u64,
    /// From the last request to the first answer, or from the first one where requests are pipelined.
    pub latency_ns: u64,
    /// What it is.
    pub pattern: Pattern,
    /// How many turns it stands for.
    pub count: u32,
}

/// So many requests before the first answer may be a stream.
pub const STREAM_REQUESTS: u16 = 32;

/// In place of an error: connecting goes on when that is asked for the last time.
pub const UNFINISHED: u32 = u32::MAX;

/// Likewise: connecting has failed before a SYN was sent, and it is not known why; mostly no port was free.
pub const UNSENT: u32 = u32::MAX - 1;

/// A shortest round trip below this many microseconds says nothing of what answers what: sending itself takes
/// as long.
pub const MIN_TELLING_RTT_US: u32 = 200;

impl Connection {
    /// Whether all these flags are set.
    #[inline(always)]
    pub const fn is(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }

    /// Whether something that is asked now begins another turn.
    #[inline(always)]
    pub const fn begins_turn(&self) -> bool {
        self.requests == 0 || self.is(Flags::ANSWERING)
    }

    /// Begins a turn, which is followed if it stands for any `turns`. Gives the turn before if it was not told of.
    #[inline(always)]
    pub fn begin_turn(&mut self, turns: u32) -> Option<Turn> {
        let before = self.take_pending();
        self.requests = 0;
        self.answers = 0;
        self.flags &= !(Flags::ANSWERING | Flags::CHOSEN);
        self.turns = turns;
        if turns != 0 {
            self.flags |= Flags::CHOSEN;
        }
        before
    }

    /// The next turn is followed if it stands for any `turns`.
    #[inline(always)]
    pub fn arm(&mut self, turns: u32) {
        if turns != 0 {
            self.turns = turns;
            self.flags |= Flags::ARMED;
        }
    }

    /// How many turns the one that begins stands for.
    #[inline(always)]
    pub fn take_armed(&mut self) -> u32 {
        let turns = if self.is(Flags::ARMED) { self.turns } else { 0 };
        self.flags &= !Flags::ARMED;
        turns
    }

    /// Notes up to where it was read. Whether that is further than when it was last noted: something was received
    /// in between.
    #[inline(always)]
    pub fn has_read(&mut self, copied: u32) -> bool {
        let is_new = self.copied != copied;
        self.copied = copied;
        is_new
    }

    /// Whether it matters what is received: that a turn begins or ends, or whose the connection is.
    #[inline(always)]
    pub const fn wants_received(&self) -> bool {
        self.flags & Flags::IGNORED == 0
            && (self.flags & (Flags::CHOSEN | Flags::ARMED) != 0 || self.owner == 0)
    }

    /// It was asked. Only of turns that are followed `now_ns` matters.
    #[inline(always)]
    pub fn ask(&mut self, now_ns: u64) {
        if self.requests == 0 {
            self.first_ns = now_ns;
        }
        self.last_ns = now_ns;
        self.requests = self.requests.saturating_add(1);
    }

    /// The first answer of a turn. `is_final`: of this side that is all there is to know.
    #[inline(always)]
    pub fn answer_first(&mut self, now_ns: u64, is_final: bool) -> Option<Turn> {
        self.flags |= Flags::ANSWERING;
        self.answers = 1;
        if !self.is(Flags::CHOSEN) || self.requests == 0 {
            return None;
        }
        self.answered_ns = now_ns;
        self.waited_ns = now_ns.wrapping_sub(self.first_ns);
        let latency_ns = now_ns.wrapping_sub(self.last_ns);
        let span_ns = self.waited_ns.wrapping_sub(latency_ns);
        self.last_ns = latency_ns;
        if self.requests > 1 && span_ns >= latency_ns {
            self.flags |= Flags::SPACED;
        }
        if is_final {
            let pattern = match self.requests {
                _ if self.is(Flags::STREAMING) => Pattern::Streaming,
                1 => Pattern::Single,
                _ => Pattern::Parts,
            };
            return Some(self.turn(pattern));
        }
        let is_early =
            self.min_rtt_us >= MIN_TELLING_RTT_US && latency_ns < u64::from(self.min_rtt_us) * 500;
        // What comes somewhere between many requests answers none of them.
        let is_between = self.requests >= STREAM_REQUESTS
            && span_ns >= latency_ns.wrapping_mul(u64::from(self.requests));
        if is_early || is_between || self.is(Flags::STREAMING) {
            return Some(self.turn(Pattern::Streaming));
        }
        if self.is(Flags::PIPELINED) {
            return Some(self.pipelined());
        }
        if self.requests == 1 {
            return Some(self.turn(Pattern::Single));
        }
        self.flags |= Flags::PENDING;
        None
    }

    /// Another answer in a turn that is followed. When it comes long after the one before, those were not of one
    /// request: the pieces of one answer follow each other soon.
    #[inline(always)]
    pub fn answer_again(&mut self, now_ns: u64) -> Option<Turn> {
        if !self.is(Flags::CHOSEN) {
            return None;
        }
        let gap_ns = now_ns.wrapping_sub(self.answered_ns);
        self.answered_ns = now_ns;
        if !self.is(Flags::PENDING) {
            if self.requests == 1 && gap_ns >= self.last_ns {
                self.flags |= Flags::PUSHED;
            }
            return None;
        }
        if gap_ns < self.last_ns / 4 {
            return None;
        }
        self.flags = self.flags & !Flags::PENDING | Flags::PIPELINED;
        Some(self.pipelined())
    }

    /// The turn that was answered and not told of.
    #[inline(always)]
    pub fn take_pending(&mut self) -> Option<Turn> {
        if !self.is(Flags::PENDING) {
            return None;
        }
        self.flags &= !Flags::PENDING;
        Some(self.turn(Pattern::Parts))
    }

    #[inline(always)]
    const fn turn(&self, pattern: Pattern) -> Turn {
        Turn { first_ns: self.first_ns, latency_ns: self.last_ns, pattern, count: self.turns }
    }

    #[inline(always)]
    const fn pipelined(&self) -> Turn {
        Turn { latency_ns: self.waited_ns, ..self.turn(Pattern::Pipelined) }
    }

    /// From the words of a map value.
    pub fn from_words(words: &[u64; CONNECTION_WORDS]) -> Self {
        let halves = |word: u64| {
            let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
            (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
        };
        let (flags, rtt_ticks) = halves(words[2]);
        let (turns, opens) = halves(words[4]);
        let (ports, netns) = halves(words[14]);
        let (rtt_us, min_rtt_us) = halves(words[15]);
        Self {
            opened_ns: words[0],
            owner: words[1],
            flags,
            rtt_ticks,
            requests: 0,
            answers: 0,
            copied: 0,
            turns,
            opens,
            first_ns: words[5],
            last_ns: words[6],
            answered_ns: words[7],
            waited_ns: words[8],
            rtt_ns: words[9],
            remote: [words[10], words[11]],
            thread_name: [words[12], words[13]],
            ports,
            netns,
            rtt_us,
            min_rtt_us,
            padding: 0,
        }
    }
}
