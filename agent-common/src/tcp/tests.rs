//! Which turns are told of, and what they are taken for.

use super::*;

const MS: u64 = 1_000_000;

/// What is told of while it is asked (`?`) and answered (`!`) at these times in milliseconds.
fn turns(connection: &mut Connection, happens: &[(char, u64)]) -> std::vec::Vec<(u64, Pattern)> {
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
