//! What is sent again, and resets.

use core::ffi::c_void;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use everflame_agent_common::{
    stats::Program,
    tcp::{Connection, Flags, What},
};

use super::{Event, IPV4, Sort, choose, fill, find, tell};
use crate::{maps::config, stats, task::read_kernel};

const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const EHOSTUNREACH: i32 = 113;

/// Runs when segments are sent again. Its first two arguments are (socket, the first of them).
#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn tcp_retransmit(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    let buffer: *const c_void = ctx.arg(1);
    stats::timed(Program::TcpTrouble, || retransmitted(socket, buffer));
    0
}

/// The same where the third argument says whether that failed (Linux 6.17).
#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn tcp_retransmit_with_result(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    let buffer: *const c_void = ctx.arg(1);
    let error = -(ctx.arg::<u64>(2) as i32);
    // The kernel has not counted them either: it did not come to sending.
    if !matches!(error, EAGAIN | ENOMEM | EBUSY | EHOSTUNREACH) {
        stats::timed(Program::TcpTrouble, || retransmitted(socket, buffer));
    }
    0
}

#[inline(always)]
fn retransmitted(socket: *const c_void, buffer: *const c_void) {
    let segments: u16 = read_kernel(buffer, config!(tcp.segments_offset));
    let segments = if segments == 0 { 1 } else { u64::from(segments) };
    trouble(socket, socket, What::Retransmit, segments);
}

/// Runs when the answer to a SYN is sent again. Its arguments are (the socket that listens, the request).
#[btf_tracepoint(function = "tcp_retransmit_synack")]
fn tcp_retransmit_synack(ctx: BtfTracePointContext) -> i32 {
    let (listener, request): (*const c_void, *const c_void) = (ctx.arg(0), ctx.arg(1));
    stats::timed(Program::TcpTrouble, || trouble(listener, request, What::Retransmit, 1));
    0
}

/// Runs when a reset is sent. Its first argument is a socket, or null: there may be none.
#[btf_tracepoint(function = "tcp_send_reset")]
fn tcp_reset_sent(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    stats::timed(Program::TcpTrouble, || {
        if socket.is_null() {
            // To a port that nobody listens on, mostly.
            reset_without_socket();
        } else {
            trouble(socket, socket, What::ResetSent, 1);
        }
    });
    0
}

/// Tells of a reset that nothing is known of.
#[inline(always)]
fn reset_without_socket() {
    let share = choose(Program::TcpTrouble, Sort::Trouble);
    if share == 0 {
        return;
    }
    let connection = Connection { remote: [0, IPV4], ..Connection::default() };
    let event = Event { count: u64::from(share), ..Event::NONE.with(What::ResetSent) };
    tell(Program::TcpTrouble, 0, &connection, &event);
}

/// Runs when one is received. Its argument is a socket.
#[btf_tracepoint(function = "tcp_receive_reset")]
fn tcp_reset_received(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    stats::timed(Program::TcpTrouble, || trouble(socket, socket, What::ResetReceived, 1));
    0
}

/// Tells of something that has happened to a connection of `owner`, whose ends `socket` knows.
#[inline(always)]
fn trouble(owner: *const c_void, socket: *const c_void, what: What, events: u64) {
    let share = choose(Program::TcpTrouble, Sort::Trouble);
    if share == 0 {
        return;
    }
    let count = events * u64::from(share);
    match find(owner) {
        Some(connection) if owner == socket => {
            let event = Event { count, ..Event::of_connection(connection, what) };
            tell(Program::TcpTrouble, socket as u64, connection, &event);
        }
        known => {
            // Of what is on its way to be a connection, or was there before.
            let mut connection = Connection::default();
            fill(&mut connection, socket);
            if owner != socket {
                // Who answers a SYN is the one that is connected to.
                connection.flags = Flags::INBOUND;
            }
            let mut start_ns = 0;
            if let Some(listener) = known {
                connection.owner = listener.owner;
                connection.thread_name = listener.thread_name;
                start_ns = if listener.is(Flags::HAS_STACK) { listener.opened_ns } else { 0 };
                connection.flags |= listener.flags & Flags::IGNORED;
            }
            let event = Event { count, start_ns, ..Event::NONE.with(what) };
            tell(Program::TcpTrouble, owner as u64, &connection, &event);
        }
    }
}
