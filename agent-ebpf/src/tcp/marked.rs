//! Of which connections it matters what is received.

use core::ffi::c_void;

use everflame_agent_common::tcp::{Connection, Flags};

use super::find;
use crate::{
    maps::{CONNECTIONS, TCP_MARKS},
    marks,
};

/// The connection is over.
#[inline(always)]
pub(super) fn forget(socket: *const c_void) {
    unmark(socket);
    let _ = CONNECTIONS.remove(&(socket as u64));
}

/// Sees to it that what is received is looked at if that matters.
#[inline(always)]
pub(super) fn settle(socket: *const c_void, connection: &mut Connection) {
    let is_wanted = connection.wants_received();
    if is_wanted == connection.is(Flags::MARKED) {
        return;
    }
    connection.flags ^= Flags::MARKED;
    if is_wanted {
        marks::mark(&TCP_MARKS, socket);
    } else {
        marks::unmark(&TCP_MARKS, socket);
    }
}

/// What its address is known for is over.
#[inline(always)]
pub(super) fn unmark(socket: *const c_void) {
    if let Some(connection) = find(socket)
        && connection.is(Flags::MARKED)
    {
        connection.flags &= !Flags::MARKED;
        marks::unmark(&TCP_MARKS, socket);
    }
}
