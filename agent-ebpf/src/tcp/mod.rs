//! `tcp`: connections, with the stack of the code that opened or accepted them, and requests on them.
//!
//! What is kept of a connection, and how turns are told apart, is in `everflame_agent_common::tcp`. What sends
//! and receives does little more than to find its connection, unless its turn is chosen.

mod accept;
mod marked;
mod trouble;
mod turns;

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_jiffies64},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use everflame_agent_common::{
    event::{DETAIL_WORDS, Kind},
    stats::{Counter, Program},
    tcp::{Connection, Flags, Happened, Pattern, Started, Turn, UNSENT, What},
    wait::Weight,
};

use crate::{
    maps::{CONNECTIONS, LISTENERS, TCP_SHARES, config},
    sample::{Whose, sample_for_io, submit_about},
    stats,
    task::{field, read_kernel},
};

use self::marked::{forget, settle, unmark};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;

/// What the second half of an address of IPv4 begins with, as IPv6 has it: `::ffff:0.0.0.0`.
const IPV4: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

// States of sockets (include/net/tcp_states.h).
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;

/// What shares are chosen of, each by itself; an index in `TCP_SHARES`.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Sort {
    /// Connections that this host opens.
    Outbound = 0,
    /// Those that it accepts.
    Inbound = 1,
    /// Turns in which it asks.
    Asking = 2,
    /// Turns in which it is asked.
    Asked = 3,
    /// Segments sent again, and resets.
    Trouble = 4,
}

/// Runs when a socket gets another state, in the task that connects or begins to listen. Its arguments are (socket,
/// old state, new state).
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tcp_opened(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    let flags = match ctx.arg::<u64>(2) as u32 {
        SYN_SENT => Flags::OUTBOUND | Flags::CONNECTING,
        LISTEN => Flags::INBOUND | Flags::LISTENING,
        _ => return 0,
    };
    if is_tcp(socket) {
        stats::timed(Program::TcpOpened, || open(&ctx, socket, flags));
    }
    0
}

/// The same for all that follows, in whatever the segment met. A program of its own, as the kernel does not run one
/// within itself, and an interrupt may find the other one at a stack.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn tcp_state(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    let (old, new) = (ctx.arg::<u64>(1) as u32, ctx.arg::<u64>(2) as u32);
    match new {
        ESTABLISHED => {}
        CLOSE if old != LISTEN => {}
        _ => return 0,
    }
    if is_tcp(socket) {
        stats::timed(Program::TcpState, || match new {
            ESTABLISHED => established(socket, old),
            _ => closed(socket, old),
        });
    }
    0
}

#[inline(always)]
fn is_tcp(socket: *const c_void) -> bool {
    // SAFETY: the tracepoint's argument is a socket.
    unsafe { field::<_, u16>(socket, config!(tcp.protocol_offset)) == IPPROTO_TCP }
}

/// The current task connects, or begins to listen.
#[inline(always)]
fn open(ctx: &impl EbpfContext, socket: *const c_void, flags: u32) {
    let owner = bpf_get_current_pid_tgid();
    if !is_wanted(owner) {
        // What is known of the address is of a socket that was connected before.
        return forget(socket);
    }
    let now_ns = stats::now_ns();
    unmark(socket);
    let Some(connection) = insert(Program::TcpOpened, socket, now_ns, flags) else { return };
    connection.owner = owner;
    connection.thread_name = thread_name();
    let is_listening = flags & Flags::LISTENING != 0;
    let opens = if is_listening { 1 } else { choose(Program::TcpOpened, Sort::Outbound) };
    if opens == 0 {
        return;
    }
    connection.opens = opens;
    connection.flags |= Flags::HAS_STACK;
    let detail = Started { id: socket as u64, start_ns: now_ns, is_turn: false }.to_detail();
    let weight = Weight { value: 0, count: u64::from(opens) };
    sample_for_io(ctx, Program::TcpOpened, Kind::TcpStarted, weight, detail);
}

/// A connection is there. Runs in whatever the segment met.
#[inline(always)]
fn established(socket: *const c_void, old: u32) {
    let now_ns = stats::now_ns();
    if let Some(connection) = find(socket)
        && connection.is(Flags::CONNECTING)
    {
        return connected(socket, connection, now_ns, None);
    }
    if let Some(connection) = find(socket)
        && connection.is(Flags::ACCEPTED)
    {
        // That was sooner.
        connection.arm(choose(Program::TcpState, Sort::Asked));
        return settle(socket, connection);
    }
    unmark(socket);
    // Of one that was on its way before it is not known since when.
    let is_late = old == SYN_SENT;
    let direction = if is_late { Flags::OUTBOUND } else { Flags::INBOUND };
    if let Some(connection) = insert(Program::TcpState, socket, now_ns, direction) {
        connection.opens = if is_late { 1 } else { choose(Program::TcpState, Sort::Inbound) };
        if !is_late {
            connection.arm(choose(Program::TcpState, Sort::Asked));
        }
        settle(socket, connection);
    }
}

/// A connection is there, and nobody has told of that: how long it took is not known.
#[inline(always)]
fn missed_established(connection: &mut Connection) {
    connection.flags &= !Flags::CONNECTING;
    stats::count(Program::TcpState, Counter::Untracked);
}

/// A socket is closed, which may be how connecting ends.
#[inline(always)]
fn closed(socket: *const c_void, old: u32) {
    if let Some(connection) = find(socket)
        && connection.is(Flags::CONNECTING)
    {
        if old != SYN_SENT && old != SYN_RECV {
            return missed_established(connection);
        }
        // SAFETY: a socket, whose error is a number.
        let mut error: u32 = unsafe { field(socket, config!(tcp.error_offset)) };
        if error == 0 && read_kernel::<_, u32>(socket, config!(tcp.sent_offset)) == 0 {
            // It failed before a SYN was sent.
            error = UNSENT;
        }
        connected(socket, connection, stats::now_ns(), Some(error));
    }
}

#[inline(always)]
fn connected(socket: *const c_void, connection: &mut Connection, now_ns: u64, failed: Option<u32>) {
    connection.flags &= !Flags::CONNECTING;
    if connection.opens == 0 {
        return;
    }
    let event = Event {
        latency_ns: now_ns.wrapping_sub(connection.opened_ns),
        count: u64::from(connection.opens),
        error: failed.unwrap_or(0),
        has_failed: failed.is_some(),
        ..Event::of_connection(connection, What::Connect)
    };
    tell(Program::TcpState, socket as u64, connection, &event);
}

/// The connection that the current task uses.
#[inline(always)]
fn used<'a>(program: Program, socket: *const c_void) -> Option<&'a mut Connection> {
    let connection = match find(socket) {
        Some(connection) => connection,
        None => seen_first(program, socket)?,
    };
    if connection.flags & (Flags::IGNORED | Flags::LISTENING) != 0 {
        return None;
    }
    if connection.is(Flags::CONNECTING) {
        let state: u8 = read_kernel(socket, config!(tcp.state_offset));
        if u32::from(state) != ESTABLISHED {
            return None;
        }
        missed_established(connection);
    }
    if connection.owner == 0 {
        belongs_to_current(connection);
        if connection.is(Flags::IGNORED) {
            return None;
        }
    }
    // Not each time: to read one takes as long as half of all else.
    // SAFETY: a helper without arguments.
    let ticks = unsafe { bpf_jiffies64() } as u32;
    if connection.rtt_ticks ^ ticks >= config!(tcp.rtt_ticks) {
        connection.rtt_ticks = ticks;
        read_rtt(socket, connection);
    }
    Some(connection)
}

/// Notes whose a connection is that somebody else has not opened.
#[inline(always)]
fn belongs_to_current(connection: &mut Connection) {
    let owner = bpf_get_current_pid_tgid();
    connection.owner = owner;
    connection.thread_name = thread_name();
    if !is_wanted(owner) {
        connection.flags |= Flags::IGNORED;
    }
}

#[inline(always)]
fn read_rtt(socket: *const c_void, connection: &mut Connection) {
    let rtt: u32 = read_kernel(socket, config!(tcp.rtt_offset));
    let min_rtt_us: u32 = read_kernel(socket, config!(tcp.min_rtt_offset));
    connection.rtt_us = rtt >> 3;
    // All bits are set until it is known.
    connection.min_rtt_us = if min_rtt_us == u32::MAX { 0 } else { min_rtt_us };
    connection.rtt_ns = stats::now_ns();
}

/// A connection that was there before, or for which there was no room.
#[inline(always)]
fn seen_first<'a>(program: Program, socket: *const c_void) -> Option<&'a mut Connection> {
    if !is_wanted(bpf_get_current_pid_tgid()) {
        return None;
    }
    let state: u8 = read_kernel(socket, config!(tcp.state_offset));
    if u32::from(state) == CLOSE {
        return None;
    }
    let connection = insert(program, socket, stats::now_ns(), 0)?;
    // What is under way may have begun before.
    connection.requests = 1;
    connection.opens = 1;
    let port = u64::from(connection.ports & 0xffff);
    if LISTENERS.get_ptr(&(u64::from(connection.netns) << 32 | port)).is_some() {
        connection.flags |= Flags::INBOUND;
        return Some(connection);
    }
    // The end with a port that the kernel has chosen is the one that has connected, if nobody listens there.
    let is_ephemeral =
        |port: u32| port >= config!(tcp.first_ephemeral) && port <= config!(tcp.last_ephemeral);
    let (remote, local) =
        (is_ephemeral(connection.ports >> 16), is_ephemeral(connection.ports & 0xffff));
    if local && !remote {
        connection.flags |= Flags::OUTBOUND;
    }
    Some(connection)
}

/// Runs when a socket is destroyed. Its argument is the socket.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroyed(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    stats::timed(Program::TcpState, || {
        let Some(connection) = find(socket) else { return };
        if let Some(turn) = connection.take_pending() {
            tell(
                Program::TcpState,
                socket as u64,
                connection,
                &Event::of_turn(&turn, turn.first_ns),
            );
        }
        if connection.opens != 0 {
            // Also without a round-trip time: the agent need not remember the connection any longer.
            let event = Event {
                latency_ns: u64::from(connection.rtt_us) * 1000,
                count: u64::from(connection.opens),
                since_ns: connection.rtt_ns,
                ..Event::of_connection(connection, What::Rtt)
            };
            tell(Program::TcpState, socket as u64, connection, &event);
        }
        forget(socket);
    });
    0
}

#[inline(always)]
fn find<'a>(socket: *const c_void) -> Option<&'a mut Connection> {
    // SAFETY: a map value. A socket is used by one task at a time, mostly: what another one does to the same
    // turn makes it a little longer or shorter.
    CONNECTIONS.get_ptr_mut(&(socket as u64)).map(|connection| unsafe { &mut *connection })
}

/// Begins to follow a connection.
#[inline(always)]
fn insert<'a>(
    program: Program,
    socket: *const c_void,
    opened_ns: u64,
    flags: u32,
) -> Option<&'a mut Connection> {
    if put(socket as u64, opened_ns, flags) != 0 {
        stats::count(program, Counter::Untracked);
        return None;
    }
    find(socket)
}

/// Puts it into the map; 0 if there was room. A function of its own, as the value is built on the stack, of which
/// walks of stacks need most on old kernels. The address is a number for the same ones, which do not let functions
/// take a socket.
#[inline(never)]
fn put(socket: u64, opened_ns: u64, flags: u32) -> i64 {
    let mut connection = Connection { opened_ns, flags, ..Connection::default() };
    fill(&mut connection, socket as *const c_void);
    CONNECTIONS.insert(&socket, &connection, 0).map_or(1, |()| 0)
}

/// Reads which ends a connection has. What is no connection yet begins in the same way.
#[inline(always)]
fn fill(connection: &mut Connection, socket: *const c_void) {
    let family: u16 = read_kernel(socket, config!(tcp.family_offset));
    if family == AF_INET6 {
        connection.remote = read_kernel(socket, config!(tcp.remote6_offset));
    } else {
        let address: u32 = read_kernel(socket, config!(tcp.remote_offset));
        connection.remote = [0, IPV4 | u64::from(address) << 32];
    }
    let remote: u16 = read_kernel(socket, config!(tcp.remote_port_offset));
    let local: u16 = read_kernel(socket, config!(tcp.local_port_offset));
    connection.ports = u32::from(u16::from_be(remote)) << 16 | u32::from(local);
    let net: *const c_void = read_kernel(socket, config!(tcp.net_offset));
    connection.netns = read_kernel(net, config!(tcp.netns_offset));
}

/// What has happened to a connection, without what that is known by.
struct Event {
    what: What,
    pattern: Pattern,
    has_failed: bool,
    error: u32,
    /// As of [`Happened`].
    start_ns: u64,
    since_ns: u64,
    latency_ns: u64,
    count: u64,
}

impl Event {
    /// With the stack that opened or accepted the connection, if there is one.
    #[inline(always)]
    fn of_connection(connection: &Connection, what: What) -> Self {
        let start_ns = if connection.is(Flags::HAS_STACK) { connection.opened_ns } else { 0 };
        Self { start_ns, ..Self::NONE.with(what) }
    }

    /// With another stack, or without one.
    #[inline(always)]
    fn of_turn(turn: &Turn, start_ns: u64) -> Self {
        Self {
            start_ns,
            pattern: turn.pattern,
            latency_ns: turn.latency_ns,
            count: u64::from(turn.count),
            ..Self::NONE.with(What::Request)
        }
    }

    const NONE: Self = Self {
        what: What::Connect,
        pattern: Pattern::Single,
        has_failed: false,
        error: 0,
        start_ns: 0,
        since_ns: 0,
        latency_ns: 0,
        count: 0,
    };

    #[inline(always)]
    const fn with(self, what: What) -> Self {
        Self { what, ..self }
    }

    #[inline(always)]
    const fn happened(&self, socket: u64, connection: &Connection) -> Happened {
        Happened {
            id: socket,
            start_ns: self.start_ns,
            remote: connection.remote,
            ports: connection.ports,
            netns: connection.netns,
            what: self.what,
            direction: connection.flags & (Flags::OUTBOUND | Flags::INBOUND),
            pattern: self.pattern,
            error: self.error,
            has_failed: self.has_failed,
            since_ns: self.since_ns,
        }
    }
}

/// What a record with a stack of its own says. A function of its own for the same reason as [`put`].
#[inline(never)]
fn describe(
    socket: u64,
    connection: &Connection,
    event: &Event,
    detail: &mut [u64; DETAIL_WORDS],
) -> i64 {
    *detail = event.happened(socket, connection).to_detail();
    0
}

/// Hands over what has happened, unless it is of nobody that was asked for. Likewise.
#[inline(never)]
fn tell(program: Program, socket: u64, connection: &Connection, event: &Event) -> i64 {
    if connection.is(Flags::IGNORED) || !is_wanted(connection.owner) {
        return 0;
    }
    let whose = Whose { task: connection.owner, thread_name: connection.thread_name };
    let weight = Weight { value: event.latency_ns, count: event.count };
    let detail = event.happened(socket, connection).to_detail();
    submit_about(program, Kind::Tcp, weight, detail, whose);
    0
}

#[inline(always)]
fn is_wanted(task: u64) -> bool {
    let target = config!(target_pid);
    target == 0 || target == (task >> 32) as u32
}

#[inline(always)]
fn thread_name() -> [u64; 2] {
    let name = bpf_get_current_comm().unwrap_or_default();
    let [a, b, c, d, e, f, g, h, rest @ ..] = name;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes(rest)]
}

/// How many events the present one stands for; 0 if it is not sampled.
#[inline(always)]
fn choose(program: Program, sort: Sort) -> u32 {
    let Some(share) = TCP_SHARES.get_ptr_mut(sort as u32) else { return 0 };
    // SAFETY: this CPU's. What comes in between makes the next sample come sooner or later.
    let share = unsafe { &mut *share };
    let most = match sort {
        Sort::Outbound | Sort::Inbound | Sort::Trouble => config!(tcp.connections),
        Sort::Asking | Sort::Asked => config!(tcp.samples),
    };
    // SAFETY: a helper without arguments.
    let ticks = unsafe { bpf_jiffies64() };
    share.advance(ticks.wrapping_mul(u64::from(config!(tcp.tick_ns))), most);
    let chosen = share.choose(most, stats::random);
    if chosen != 0 && share.is_partial() {
        stats::count(program, Counter::Thinned);
    }
    chosen
}
