//! Requests and their answers: what is sent and received on connections.
//!
//! What is received is looked at only on connections with a turn that is followed, or is going to be. Of all
//! others it is seen when something is sent whether something was read since something was last sent: that is the
//! end of a turn, or its begin.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_skc_to_tcp_sock,
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};
use everflame_agent_common::{
    event::{DETAIL_WORDS, Kind},
    stats::Program,
    tcp::{Connection, Flags, Started, Turn},
    wait::Weight,
};

use super::{AF_INET, AF_INET6, Event, IPPROTO_TCP, Sort, choose, describe, settle, tell, used};
use crate::{
    maps::{TCP_MARKS, config},
    marks,
    sample::sample_for_io,
    stats,
    task::field,
};

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

/// What is sampled of what was sent.
enum Sampled {
    /// The begin of a turn, and how many that stands for.
    Asked { now_ns: u64, turns: u32 },
    /// A turn that is answered.
    Answered(Turn),
}

#[inline(always)]
fn sent(ctx: &impl EbpfContext, socket: *const c_void) {
    let Some(connection) = used(Program::TcpSent, socket) else { return };
    let sampled = if connection.is(Flags::OUTBOUND) {
        asks(socket, connection)
    } else if connection.is(Flags::INBOUND) {
        answers(socket, connection)
    } else {
        None
    };
    settle(socket, connection);
    let Some(sampled) = sampled else { return };
    let mut detail = [0; DETAIL_WORDS];
    let (kind, weight) = match sampled {
        Sampled::Asked { now_ns, turns } => {
            detail = Started { id: socket as u64, start_ns: now_ns, is_turn: true }.to_detail();
            (Kind::TcpStarted, Weight { value: 0, count: u64::from(turns) })
        }
        Sampled::Answered(turn) => {
            describe(socket as u64, connection, &Event::of_turn(&turn, 0), &mut detail);
            (Kind::Tcp, Weight { value: turn.latency_ns, count: u64::from(turn.count) })
        }
    };
    // In one place, as the verifier follows each walk of a stack.
    sample_for_io(ctx, Program::TcpSent, kind, weight, detail);
}

/// What was sent asks for something.
#[inline(always)]
fn asks(socket: *const c_void, connection: &mut Connection) -> Option<Sampled> {
    let was_followed = connection.is(Flags::CHOSEN);
    if !was_followed && has_read(socket, connection) {
        connection.flags |= Flags::ANSWERING;
    }
    if !connection.begins_turn() {
        connection.ask(if was_followed { stats::now_ns() } else { 0 });
        return None;
    }
    let turns = choose(Program::TcpSent, Sort::Asking);
    if let Some(turn) = connection.begin_turn(turns) {
        let event = Event::of_turn(&turn, turn.first_ns);
        tell(Program::TcpSent, socket as u64, connection, &event);
    }
    if turns == 0 {
        if was_followed {
            let _ = has_read(socket, connection);
        }
        connection.ask(0);
        return None;
    }
    let now_ns = stats::now_ns();
    connection.ask(now_ns);
    Some(Sampled::Asked { now_ns, turns })
}

/// What was sent answers.
#[inline(always)]
fn answers(socket: *const c_void, connection: &mut Connection) -> Option<Sampled> {
    if !connection.is(Flags::CHOSEN) {
        if !connection.is(Flags::ARMED) && has_read(socket, connection) {
            // The first answer of a turn that is not followed.
            connection.flags |= Flags::ANSWERING;
            connection.arm(choose(Program::TcpSent, Sort::Asked));
        }
        return None;
    }
    let now_ns = stats::now_ns();
    if connection.is(Flags::ANSWERING) {
        // Nothing of this side waits for that.
        let _ = connection.answer_again(now_ns);
        return None;
    }
    let turn = connection.answer_first(now_ns, true)?;
    connection.arm(choose(Program::TcpSent, Sort::Asked));
    Some(Sampled::Answered(turn))
}

/// Whether something was read since something was last sent.
#[inline(always)]
fn has_read(socket: *const c_void, connection: &mut Connection) -> bool {
    // SAFETY: a socket. The verifier knows what comes back for one of TCP, whose members can be read.
    unsafe {
        let tcp = bpf_skc_to_tcp_sock(socket.cast_mut());
        !tcp.is_null() && connection.has_read(field(tcp, config!(tcp.copied_offset)))
    }
}

/// Runs when a task receives something. Its argument is the socket.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn tcp_received(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    if marks::is_marked(&TCP_MARKS, socket) {
        stats::timed(Program::TcpReceived, || received(socket));
    }
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
            let turns = connection.take_armed();
            // Of this side nothing is left to be told.
            let _ = connection.begin_turn(turns);
        }
        let now_ns = if connection.is(Flags::CHOSEN) { stats::now_ns() } else { 0 };
        connection.ask(now_ns);
    }
    settle(socket, connection);
}
