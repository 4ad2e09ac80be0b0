//! `tcp`: what happens to TCP connections, by the code that opened or accepted them, or that sends.
//!
//! Each event and direction is a profile of its own, with both as labels: to add how long it takes to connect
//! to how long answers take, or what this host waits for to what others wait for, would say nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use everflame_agent_common::tcp::Pattern as Seen;
use everflame_profile::LabelValue;
use everflame_profile::kind::Kind as ProfileKind;
use everflame_profile::tcp::{
    DIRECTION, Direction, ERROR, EVENT, Event, LATENCY, LOCAL_PORT, NETNS, PATTERN, Pattern,
    REMOTE, REMOTE_PORT, RESET,
};

use super::block::signed;
use super::{Assembly, ProcessProfile, Symbols, WindowTime, labels};
use crate::aggregate::{IoKey, ProcessWindow, StackKey, TcpKey, Totals, Window};

/// A stack, what happened, and how often.
type Keyed<'a> = (&'a Arc<StackKey>, TcpKey, &'a Totals);

/// The profiles of a process, one for each event and direction with something in it.
pub(super) fn profiles(
    process: &ProcessWindow,
    window: &Window,
    symbols: &Symbols,
    time: WindowTime,
) -> impl Iterator<Item = ProcessProfile> {
    let mut events: BTreeMap<(Event, Direction), Vec<Keyed<'_>>> = BTreeMap::new();
    for (key, totals) in &process.tcp {
        if let Some(IoKey::Tcp(tcp)) = key.io {
            events.entry((tcp.event, tcp.direction)).or_default().push((key, tcp, totals));
        }
    }
    events.into_iter().map(move |((event, direction), keys)| {
        let kind = ProfileKind::Tcp;
        let mut assembly = Assembly::new(kind, &window.ranges, symbols, time);
        assembly.main_executable(process);
        for (key, tcp, totals) in keys {
            assembly.connection_event(key, &tcp, *totals);
        }
        let mut labels = labels(process);
        labels.push((EVENT.to_owned(), event.name().to_owned()));
        labels.push((DIRECTION.to_owned(), direction.name().to_owned()));
        labels.sort();
        ProcessProfile { kind, labels, profile: assembly.builder.finish() }
    })
}

impl Assembly<'_> {
    fn connection_event(&mut self, key: &StackKey, tcp: &TcpKey, totals: Totals) {
        let stack = self.stack(key);
        let thread = key.thread_name.to_string_lossy();
        let remote = tcp.remote.to_string();
        let error = tcp.error.map(|error| error.to_string());
        let mut labels = vec![
            (EVENT, LabelValue::Str(tcp.event.name())),
            (DIRECTION, LabelValue::Str(tcp.direction.name())),
            (REMOTE, LabelValue::Str(&remote)),
            (NETNS, LabelValue::Num(i64::from(tcp.netns), "")),
            ("tid", LabelValue::Num(i64::from(key.tid), "")),
            ("thread", LabelValue::Str(&thread)),
        ];
        let port_label =
            if tcp.direction == Direction::Outbound { REMOTE_PORT } else { LOCAL_PORT };
        labels.extend(tcp.port.map(|port| (port_label, LabelValue::Num(i64::from(port), ""))));
        labels.extend(tcp.pattern.map(|seen| (PATTERN, LabelValue::Str(pattern(seen).name()))));
        labels.extend(error.as_deref().map(|error| (ERROR, LabelValue::Str(error))));
        let reset = |is_sent| if is_sent { "sent" } else { "received" };
        labels.extend(tcp.is_sent.map(|is_sent| (RESET, LabelValue::Str(reset(is_sent)))));
        if !matches!(tcp.event, Event::Retransmit | Event::Reset) {
            labels.push((LATENCY, LabelValue::Num(signed(tcp.latency), "nanoseconds")));
        }
        let values = [totals.count, totals.value].map(signed);
        self.builder.sample(&stack, &values, &labels);
    }
}

const fn pattern(seen: Seen) -> Pattern {
    match seen {
        Seen::Single => Pattern::Single,
        Seen::Parts => Pattern::Parts,
        Seen::Pipelined => Pattern::Pipelined,
        Seen::Streaming => Pattern::Streaming,
    }
}
