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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// What is told of while it is asked (`?`) and answered (`!`) at these times in milliseconds.
    fn turns(
        connection: &mut Connection,
        happens: &[(char, u64)],
    ) -> std::vec::Vec<(u64, Pattern)> {
        let mut told = std::vec::Vec::new();
        for &(what, ms) in happens {
            let now_ns = ms * MS;
            let turn = if what == '?' {
                let before = if connection.begins_turn() { connection.begin_turn(1) } else { None };
                connection.ask(now_ns);
                before
            } else if connection.is(Flags::ANSWERING) {
                connection.answer_again(now_ns)
            } else {
                connection.answer_first(now_ns, false)
            };
            told.extend(turn.map(|turn| (turn.latency_ns / MS, turn.pattern)));
        }
        told.extend(connection.take_pending().map(|turn| (turn.latency_ns / MS, turn.pattern)));
        told
    }

    #[test]
    fn answer_to_one_request_is_its() {
        let happens = [('?', 100), ('!', 110), ('!', 111), ('?', 200), ('!', 230)];
        let told = turns(&mut Connection::default(), &happens);
        assert_eq!(told, [(10, Pattern::Single), (30, Pattern::Single)]);
    }

    #[test]
    fn request_in_pieces_ends_with_its_last_one() {
        let happens = [('?', 100), ('?', 105), ('!', 125), ('!', 126), ('?', 200), ('!', 201)];
        let told = turns(&mut Connection::default(), &happens);
        assert_eq!(told, [(20, Pattern::Parts), (1, Pattern::Single)]);
    }

    #[test]
    fn requests_that_are_answered_one_by_one_are_pipelined() {
        let happens = [('?', 100), ('?', 101), ('?', 102), ('!', 111), ('!', 121), ('!', 131)];
        let mut connection = Connection::default();
        let told = turns(&mut connection, &happens);
        assert_eq!(told, [(11, Pattern::Pipelined)]);
        // From now on it is known.
        let told = turns(&mut connection, &[('?', 200), ('!', 210)]);
        assert_eq!(told, [(10, Pattern::Pipelined)]);
    }

    #[test]
    fn what_comes_sooner_than_a_round_trip_is_no_answer() {
        let mut connection = Connection { min_rtt_us: 40_000, ..Connection::default() };
        let told = turns(&mut connection, &[('?', 100), ('!', 110), ('?', 200), ('!', 241)]);
        assert_eq!(told, [(10, Pattern::Streaming), (41, Pattern::Single)]);
    }

    #[test]
    fn what_comes_between_many_requests_is_no_answer() {
        let requests = |every_ms: u64| (0..40).map(move |at| ('?', 100 + at * every_ms));
        let streamed: std::vec::Vec<_> = requests(3).chain([('!', 218)]).collect();
        let told = turns(&mut Connection::default(), &streamed);
        assert_eq!(told, [(1, Pattern::Streaming)]);
        // An upload is sent as fast as it goes.
        let uploaded: std::vec::Vec<_> = requests(1).chain([('!', 159)]).collect();
        let told = turns(&mut Connection::default(), &uploaded);
        assert_eq!(told, [(20, Pattern::Parts)]);
    }

    #[test]
    fn ends_that_do_not_wait_for_each_other_stream() {
        let mut connection = Connection::default();
        // Both send every 10 ms, more or less.
        let drifting = [('?', 100), ('!', 104), ('!', 114), ('?', 115), ('?', 125), ('!', 126)];
        turns(&mut connection, &drifting);
        let told = turns(&mut connection, &[('?', 200), ('!', 204)]);
        assert_eq!(told, [(4, Pattern::Streaming)]);
        // An answer that comes bit by bit is one to a request.
        let mut connection = Connection::default();
        let slowly = [('?', 100), ('!', 110), ('!', 130), ('!', 150), ('?', 200), ('!', 210)];
        let told = turns(&mut connection, &slowly);
        assert_eq!(told, [(10, Pattern::Single), (10, Pattern::Single)]);
    }

    #[test]
    fn words_are_where_the_programs_write_them() {
        use core::mem::offset_of;
        let mut words = [0u64; CONNECTION_WORDS];
        let mut set = |offset: usize, value: u32| {
            let mut bytes = words[offset / 8].to_ne_bytes();
            bytes[offset % 8..][..4].copy_from_slice(&value.to_ne_bytes());
            words[offset / 8] = u64::from_ne_bytes(bytes);
        };
        set(offset_of!(Connection, turns), 1);
        set(offset_of!(Connection, opens), 2);
        set(offset_of!(Connection, ports), 3);
        set(offset_of!(Connection, netns), 4);
        set(offset_of!(Connection, rtt_us), 5);
        set(offset_of!(Connection, min_rtt_us), 6);
        set(offset_of!(Connection, flags), 7);
        set(offset_of!(Connection, rtt_ticks), 8);
        words[offset_of!(Connection, rtt_ns) / 8] = 9;
        words[offset_of!(Connection, remote) / 8] = 10;
        words[offset_of!(Connection, thread_name) / 8] = 11;
        words[offset_of!(Connection, owner) / 8] = 12;
        let read = Connection::from_words(&words);
        assert_eq!([read.turns, read.opens, read.ports, read.netns], [1, 2, 3, 4]);
        assert_eq!([read.rtt_us, read.min_rtt_us, read.flags, read.rtt_ticks], [5, 6, 7, 8]);
        assert_eq!([read.rtt_ns, read.remote[0], read.thread_name[0], read.owner], [9, 10, 11, 12]);
    }

    #[test]
    fn armed_connection_follows_its_next_turn_and_no_other() {
        let mut connection = Connection { owner: 1, ..Connection::default() };
        assert!(!connection.wants_received());
        connection.arm(0);
        assert!(!connection.wants_received(), "not chosen");
        connection.arm(8);
        assert!(connection.wants_received());
        assert_eq!((connection.take_armed(), connection.take_armed()), (8, 0));
        connection.begin_turn(8);
        assert!(connection.wants_received(), "it is under way");
        connection.begin_turn(0);
        assert!(!connection.wants_received());
        assert!(Connection::default().wants_received(), "to learn whose it is");
        let ignored = Connection { flags: Flags::IGNORED, ..Connection::default() };
        assert!(!ignored.wants_received());
    }

    #[test]
    fn what_was_read_is_new_once() {
        let mut connection = Connection { copied: u32::MAX, ..Connection::default() };
        assert!(connection.has_read(5), "sequence numbers begin anew");
        assert!(!connection.has_read(5));
        assert!(connection.has_read(6));
    }

    #[test]
    fn what_nobody_asked_for_is_not_told_of() {
        assert!(turns(&mut Connection::default(), &[('!', 100), ('!', 110)]).is_empty());
    }
}
