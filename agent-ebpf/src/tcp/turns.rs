//! Requests and their answers: what is sent and received on connections.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};
use everflame_agent_common::{
    event::{DETAIL_WORDS, Kind},
    stats::Program,
    tcp::{Connection, Flags, Started},
    wait::Weight,
};

use super::{AF_INET, AF_INET6, Event, IPPROTO_TCP, Sort, choose, describe, tell, used};
use crate::{maps::config, sample::sample_for_io, stats, task::field};

/// Runs when a task has sent something on a socket of any kind (Linux 6.3). Its arguments are (socket, result,
/// flags).
#[btf_tracepoint(function = "sock_send_length")]
fn tcp_sent(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    if (ctx.arg::<u64>(1) as i32) <= 0 {
        return 0;
    }
    // SAFETY: the tracepoint's argument is a socket.
    let (family, protocol): (u16, u16) = unsafe {
        (field(socket, config!(tcp.family_offset)), field(socket, config!(tcp.protocol_offset)))
    };
    if (family == AF_INET || family == AF_INET6) && protocol == IPPROTO_TCP {
        stats::timed(Program::TcpSent, || sent(&ctx, socket));
    }
    0
}

/// The same on older kernels: the end of `tcp_sendmsg`, whose arguments are (socket, message, size).
#[fexit(function = "tcp_sendmsg")]
fn tcp_sent_by_function(ctx: FExitContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    if (ctx.arg::<u64>(3) as i32) > 0 {
        stats::timed(Program::TcpSent, || sent(&ctx, socket));
    }
    0
}

#[inline(always)]
fn sent(ctx: &impl EbpfContext, socket: *const c_void) {
    let Some(connection) = used(Program::TcpSent, socket) else { return };
    let mut detail = [0; DETAIL_WORDS];
    let sampled = if connection.is(Flags::OUTBOUND) {
        asks(socket, connection, &mut detail)
    } else if connection.is(Flags::INBOUND) {
        answers(socket, connection, &mut detail)
    } else {
        None
    };
    // In one place, as the verifier follows each walk of a stack.
    if let Some((kind, weight)) = sampled {
        sample_for_io(ctx, Program::TcpSent, kind, weight, detail);
    }
}

/// What was sent asks for something. Gives what is to be sampled: the beginning of a turn.
#[inline(always)]
fn asks(
    socket: *const c_void,
    connection: &mut Connection,
    detail: &mut [u64; DETAIL_WORDS],
) -> Option<(Kind, Weight)> {
    if !connection.begins_turn() {
        connection.ask(if connection.is(Flags::CHOSEN) { stats::now_ns() } else { 0 });
        return None;
    }
    let turns = choose(Program::TcpSent, Sort::Asking);
    if let Some(turn) = connection.begin_turn(turns) {
        let event = Event::of_turn(&turn, turn.first_ns);
        tell(Program::TcpSent, socket as u64, connection, &event);
    }
    if turns == 0 {
        connection.ask(0);
        return None;
    }
    let now_ns = stats::now_ns();
    connection.ask(now_ns);
    *detail = Started { id: socket as u64, start_ns: now_ns, is_turn: true }.to_detail();
    Some((Kind::TcpStarted, Weight { value: 0, count: u64::from(turns) }))
}

/// What was sent answers. Gives what is to be sampled: the request.
#[inline(always)]
fn answers(
    socket: *const c_void,
    connection: &mut Connection,
    detail: &mut [u64; DETAIL_WORDS],
) -> Option<(Kind, Weight)> {
    let now_ns = if connection.is(Flags::CHOSEN) { stats::now_ns() } else { 0 };
    if connection.is(Flags::ANSWERING) {
        // Nothing of this side waits for that.
        let _ = connection.answer_again(now_ns);
        return None;
    }
    let turn = connection.answer_first(now_ns, true)?;
    describe(socket as u64, connection, &Event::of_turn(&turn, 0), detail);
    Some((Kind::Tcp, Weight { value: turn.latency_ns, count: u64::from(turn.count) }))
}

/// Runs when a task receives something. Its argument is the socket.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn tcp_received(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    stats::timed(Program::TcpReceived, || received(socket));
    0
}

#[inline(always)]
fn received(socket: *const c_void) {
    let Some(connection) = used(Program::TcpReceived, socket) else { return };
    if connection.is(Flags::OUTBOUND) {
        let now_ns = if connection.is(Flags::CHOSEN) { stats::now_ns() } else { 0 };
        let turn = if connection.is(Flags::ANSWERING) {
            connection.answer_again(now_ns)
        } else {
            connection.answer_first(now_ns, false)
        };
        if let Some(turn) = turn {
            tell(
                Program::TcpReceived,
                socket as u64,
                connection,
                &Event::of_turn(&turn, turn.first_ns),
            );
        }
    } else if connection.is(Flags::INBOUND) {
        if connection.begins_turn() {
            // Of this side nothing is left to be told.
            let _ = connection.begin_turn(choose(Program::TcpReceived, Sort::Asked));
        }
        let now_ns = if connection.is(Flags::CHOSEN) { stats::now_ns() } else { 0 };
        connection.ask(now_ns);
    }
}
