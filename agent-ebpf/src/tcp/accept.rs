//! When connections are accepted.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_get_current_task,
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};
use everflame_agent_common::{
    event::{DETAIL_WORDS, Kind},
    stats::Program,
    tcp::{Connection, Flags, What},
    wait::Weight,
};

use super::{Event, SYN_RECV, belongs_to_current, find, insert};
use crate::{
    maps::config,
    sample::sample_for_io,
    stats,
    task::{field, read_kernel},
};

/// Runs at the end of `inet_csk_accept`, where that can be seen. Its arguments are (the socket that listens,
/// flags, where an error goes, whether the kernel itself accepts), and what it returns: a socket, or null.
#[fexit(function = "inet_csk_accept")]
fn tcp_accepted(ctx: FExitContext) -> i32 {
    let socket: *const c_void = ctx.arg(4);
    stats::timed(Program::TcpAccepted, || accepted(&ctx, socket));
    0
}

/// The same since Linux 6.10: (the socket that listens, what else there is).
#[fexit(function = "inet_csk_accept")]
fn tcp_accepted_by_two(ctx: FExitContext) -> i32 {
    let socket: *const c_void = ctx.arg(2);
    stats::timed(Program::TcpAccepted, || accepted(&ctx, socket));
    0
}

/// Runs at the end of each system call; for recordings, where the function's end cannot be seen. Its arguments
/// are (registers, what is returned).
#[btf_tracepoint(function = "sys_exit")]
fn tcp_accepted_by_call(ctx: BtfTracePointContext) -> i32 {
    let registers: *const c_void = ctx.arg(0);
    // SAFETY: the tracepoint's argument is the task's registers.
    let call = unsafe { field::<_, u32>(registers, config!(tcp.syscall_offset)) };
    let calls = config!(tcp.accept_calls);
    if call != calls & 0xffff && call != calls >> 16 {
        return 0;
    }
    let descriptor = ctx.arg::<u64>(1) as i64;
    if descriptor >= 0 {
        stats::timed(Program::TcpAccepted, || accepted(&ctx, socket_of(descriptor as u64)));
    }
    0
}

/// The kernel's socket of a descriptor of the current task.
#[inline(always)]
fn socket_of(descriptor: u64) -> *const c_void {
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() } as *const c_void;
    let files: *const c_void = read_kernel(task, config!(tcp.files_offset));
    let table: *const c_void = read_kernel(files, config!(tcp.table_offset));
    let descriptors: *const c_void = read_kernel(table, config!(tcp.descriptors_offset));
    let at = (descriptor as u32).wrapping_mul(8);
    let file: *const c_void = read_kernel(descriptors, at);
    let private: *const c_void = read_kernel(file, config!(tcp.private_offset));
    read_kernel(private, config!(tcp.sock_offset))
}

/// A connection may be accepted before the kernel has said that it is there.
#[inline(always)]
fn accepted_early<'a>(socket: *const c_void) -> Option<&'a mut Connection> {
    let state: u8 = read_kernel(socket, config!(tcp.state_offset));
    if u32::from(state) != SYN_RECV {
        return None;
    }
    let connection = insert(Program::TcpAccepted, socket, stats::now_ns(), Flags::INBOUND)?;
    connection.opens = 1;
    Some(connection)
}

#[inline(always)]
fn accepted(ctx: &impl EbpfContext, socket: *const c_void) {
    let known = find(socket).or_else(|| accepted_early(socket));
    let Some(connection) = known else { return };
    if !connection.is(Flags::INBOUND) || connection.is(Flags::ACCEPTED) {
        return;
    }
    connection.flags |= Flags::ACCEPTED;
    belongs_to_current(connection);
    if connection.is(Flags::IGNORED) || connection.opens == 0 {
        return;
    }
    connection.flags |= Flags::HAS_STACK;
    let latency_ns = stats::now_ns().wrapping_sub(connection.opened_ns);
    let weight = Weight { value: latency_ns, count: u64::from(connection.opens) };
    let mut detail = [0; DETAIL_WORDS];
    describe(socket as u64, connection, &mut detail);
    sample_for_io(ctx, Program::TcpAccepted, Kind::Tcp, weight, detail);
}

/// What a record of it says. A function of its own, to leave the walk of the stack room on the BPF stack.
#[inline(never)]
fn describe(socket: u64, connection: &Connection, detail: &mut [u64; DETAIL_WORDS]) -> i64 {
    *detail =
        Event::of_connection(connection, What::Accept).happened(socket, connection).to_detail();
    0
}
