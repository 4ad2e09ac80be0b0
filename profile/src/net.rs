//! The report on TCP: which process talks to whom, how long connecting and answers take, what is lost
//! or refused, and which code it is.
//!
//! It is made of a profile of kind `tcp`; what its samples say is in [`crate::tcp`]. What a process asks
//! of others and what others ask of it are rows of their own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use everflame_proto::pprof::{Profile, Sample};
use serde::Serialize;

use crate::frames::Frames;
use crate::lengths::{Latency, Lengths};
use crate::select::{label, number, sample_type_index};
use crate::tcp::{
    DIRECTION, Direction, ERROR, EVENT, Event, LATENCY, LOCAL_PORT, NETNS, PATTERN, Pattern,
    RECEIVED, REMOTE, REMOTE_PORT, RESET, SENT, UNFINISHED,
};

/// Everything that processes did over TCP, what was waited for longest in all first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NetReport {
    /// How long was recorded, in seconds.
    pub seconds: f64,
    /// By process, remote and direction.
    pub peers: Vec<NetTotals>,
}

/// What one process and one remote did with each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NetTotals {
    /// Who of them connected.
    pub direction: Direction,
    /// The process, if the profile says so.
    pub pid: Option<String>,
    /// Its name.
    pub comm: Option<String>,
    /// The address of the other end, or [`OTHER`](crate::tcp::OTHER).
    pub remote: String,
    /// The remote's port, if it is not the one that connected.
    pub remote_port: Option<i64>,
    /// The process's port, if it is not the one that connected.
    pub local_port: Option<i64>,
    /// The inode number of the network namespace.
    pub netns: Option<i64>,
    /// What was waited for connections and for answers to requests, all together, in nanoseconds.
    pub wait_ns: i64,
    /// Attempts to connect.
    pub connects: ConnectTotals,
    /// Connections that were accepted.
    pub accepts: AcceptTotals,
    /// What the network takes there and back.
    pub rtt: RoundTrips,
    /// Requests that were answered.
    pub requests: RequestTotals,
    /// Segments that were sent again.
    pub retransmits: i64,
    /// Resets that the process's end sent.
    pub resets_sent: i64,
    /// Resets that came from the remote.
    pub resets_received: i64,
    /// The code that did it, what took longest first, then what takes no time by how often it was; without
    /// round trips.
    pub stacks: Vec<NetStack>,
}

/// Attempts to connect.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ConnectTotals {
    /// How many, whatever became of them.
    pub count: i64,
    /// How many in a second.
    pub per_second: f64,
    /// How many failed. Those that went on when the recording ended have not.
    pub failed: i64,
    /// Those that did not come to be connections, what was most often first.
    pub failures: Vec<ConnectFailures>,
    /// How long it took until the connection was there, of those that came to be.
    pub latency: Latency,
}

/// Attempts to connect that ended in the same way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConnectFailures {
    /// The error's name, as `ECONNREFUSED`, [`ABORTED`](crate::tcp::ABORTED) or [`UNFINISHED`].
    pub error: String,
    /// How many.
    pub count: i64,
    /// How long it took until then.
    pub latency: Latency,
}

/// Connections that were accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AcceptTotals {
    /// How many.
    pub count: i64,
    /// How many in a second.
    pub per_second: f64,
    /// How long they had been there when the process took them.
    pub latency: Latency,
}

/// Smoothed round-trip times. They are no waits: there is no sum of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoundTrips {
    /// Connections, each once for every window in which it was used.
    pub count: i64,
    /// Half of them had no longer one, in nanoseconds.
    pub p50_ns: i64,
    /// 90 in 100 had not.
    pub p90_ns: i64,
    /// 99 in 100 had not.
    pub p99_ns: i64,
    /// About the longest.
    pub max_ns: i64,
}

/// Requests that were answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RequestTotals {
    /// How many; without what is [`Pattern::Streaming`].
    pub count: i64,
    /// How many in a second.
    pub per_second: f64,
    /// How many of each [`Pattern`], by its name; with those that are streaming.
    pub patterns: BTreeMap<String, i64>,
    /// How long it took until the answer began; without what is streaming, as that is no request's.
    pub latency: Latency,
}

/// What the same code did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetStack {
    /// What it was.
    pub event: Event,
    /// Functions, leaf first.
    pub stack: Vec<String>,
    /// How often.
    pub events: i64,
    /// What it took, in nanoseconds; 0 of what takes no time, and of what is streaming.
    pub latency_ns: i64,
}

/// What makes rows of the report.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    direction: Direction,
    pid: String,
    comm: String,
    remote: String,
    remote_port: Option<i64>,
    local_port: Option<i64>,
    netns: Option<i64>,
}

impl Key {
    fn of(profile: &Profile, sample: &Sample) -> Self {
        let text = |key| label(profile, sample, key).to_owned();
        let number = |key| Some(number(profile, sample, key)).filter(|number| *number != 0);
        let direction = direction(label(profile, sample, DIRECTION));
        Self {
            direction,
            pid: text("pid"),
            comm: text("comm"),
            remote: text(REMOTE),
            // The port of whoever connected is any, and would make a row of each connection.
            remote_port: number(REMOTE_PORT).filter(|_| direction != Direction::Inbound),
            local_port: number(LOCAL_PORT).filter(|_| direction != Direction::Outbound),
            netns: number(NETNS),
        }
    }
}

fn direction(name: &str) -> Direction {
    let known = [Direction::Outbound, Direction::Inbound];
    known.into_iter().find(|direction| direction.name() == name).unwrap_or_default()
}

/// A row while samples are added.
#[derive(Default)]
struct Building {
    connected: Lengths,
    failures: HashMap<String, Lengths>,
    accepts: Lengths,
    round_trips: Lengths,
    requests: Lengths,
    patterns: BTreeMap<String, i64>,
    retransmits: i64,
    resets_sent: i64,
    resets_received: i64,
    /// (how often, nanoseconds)
    stacks: HashMap<(Event, Vec<String>), (i64, i64)>,
}

/// Makes the report of a profile of kind `tcp`; empty of any other.
pub fn net(profile: &Profile) -> NetReport {
    let index = |name| sample_type_index(profile, Some(name)).ok();
    let (Some(events), Some(latency)) = (index("events"), index("latency")) else {
        return NetReport::default();
    };
    let seconds = profile.duration_nanos.max(0) as f64 / 1e9;
    let frames = Frames::new(profile);
    let mut rows: HashMap<Key, Building> = HashMap::new();
    for sample in &profile.sample {
        let name = label(profile, sample, EVENT);
        let Some(event) = Event::ALL.into_iter().find(|event| event.name() == name) else {
            continue;
        };
        let value = |index: usize| sample.value.get(index).copied().unwrap_or(0);
        let row = rows.entry(Key::of(profile, sample)).or_default();
        let took_ns = row.add(profile, sample, event, value(events), value(latency));
        if event != Event::Rtt {
            let names = frames.stack(sample).map(|frame| frames.name(frame).to_owned());
            let stack = row.stacks.entry((event, names.collect())).or_default();
            add(&mut stack.0, value(events));
            add(&mut stack.1, took_ns);
        }
    }
    let mut peers: Vec<NetTotals> =
        rows.into_iter().map(|(key, row)| row.finish(key, seconds)).collect();
    peers.sort_by_cached_key(|row| {
        // Of those for which nobody waited, first what happened most often.
        let events = row.stacks.iter().fold(0, |sum: i64, stack| sum.saturating_add(stack.events));
        let process = (row.pid.clone(), row.comm.clone());
        let ports = (row.remote_port, row.local_port);
        let names = (process, row.remote.clone(), ports, row.direction, row.netns);
        (Reverse((row.wait_ns, events)), names)
    });
    NetReport { seconds, peers }
}

fn add(sum: &mut i64, value: i64) {
    *sum = sum.saturating_add(value);
}

impl Building {
    /// Adds a sample of `events` of these, which took `ns`. Returns how much of that its code has waited.
    fn add(
        &mut self,
        profile: &Profile,
        sample: &Sample,
        event: Event,
        events: i64,
        ns: i64,
    ) -> i64 {
        let text = |key| label(profile, sample, key);
        let lengths = match event {
            Event::Connect => match text(ERROR) {
                "" => &mut self.connected,
                error => self.failures.entry(error.to_owned()).or_default(),
            },
            Event::Accept => &mut self.accepts,
            Event::Rtt => &mut self.round_trips,
            Event::Request => {
                let pattern = text(PATTERN);
                add(self.patterns.entry(pattern.to_owned()).or_default(), events);
                if pattern == Pattern::Streaming.name() {
                    return 0;
                }
                &mut self.requests
            }
            Event::Retransmit => {
                add(&mut self.retransmits, events);
                return 0;
            }
            Event::Reset => {
                match text(RESET) {
                    SENT => add(&mut self.resets_sent, events),
                    RECEIVED => add(&mut self.resets_received, events),
                    _ => {}
                }
                return 0;
            }
        };
        lengths.add(number(profile, sample, LATENCY), ns, events);
        ns
    }

    fn finish(self, key: Key, seconds: f64) -> NetTotals {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let per_second = |count: i64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let connects = connects(&self.connected, self.failures, per_second);
        let requests = RequestTotals {
            count: self.requests.count(),
            per_second: per_second(self.requests.count()),
            patterns: self.patterns,
            latency: self.requests.latency(),
        };
        let failures = connects.failures.iter().map(|failures| failures.latency);
        let wait_ns = failures
            .chain([connects.latency, requests.latency])
            .fold(0, |sum: i64, latency| sum.saturating_add(latency.total_ns));
        let Latency { p50_ns, p90_ns, p99_ns, max_ns, .. } = self.round_trips.latency();
        let mut stacks: Vec<NetStack> = self
            .stacks
            .into_iter()
            .map(|((event, stack), (events, latency_ns))| NetStack {
                event,
                stack,
                events,
                latency_ns,
            })
            .collect();
        stacks.sort_by(|a, b| {
            (b.latency_ns, b.events, a.event, &a.stack).cmp(&(
                a.latency_ns,
                a.events,
                b.event,
                &b.stack,
            ))
        });
        NetTotals {
            direction: key.direction,
            pid: some(key.pid),
            comm: some(key.comm),
            remote: key.remote,
            remote_port: key.remote_port,
            local_port: key.local_port,
            netns: key.netns,
            wait_ns,
            connects,
            accepts: AcceptTotals {
                count: self.accepts.count(),
                per_second: per_second(self.accepts.count()),
                latency: self.accepts.latency(),
            },
            rtt: RoundTrips { count: self.round_trips.count(), p50_ns, p90_ns, p99_ns, max_ns },
            requests,
            retransmits: self.retransmits,
            resets_sent: self.resets_sent,
            resets_received: self.resets_received,
            stacks,
        }
    }
}

fn connects(
    connected: &Lengths,
    failures: HashMap<String, Lengths>,
    per_second: impl Fn(i64) -> f64,
) -> ConnectTotals {
    let mut failures: Vec<ConnectFailures> = failures
        .into_iter()
        .map(|(error, lengths)| ConnectFailures {
            error,
            count: lengths.count(),
            latency: lengths.latency(),
        })
        .collect();
    failures.sort_by(|a, b| (b.count, &a.error).cmp(&(a.count, &b.error)));
    let sum = |is_it: fn(&ConnectFailures) -> bool| {
        let counts = failures.iter().filter(|failures| is_it(failures));
        counts.fold(0, |sum: i64, failures| sum.saturating_add(failures.count))
    };
    let count = connected.count().saturating_add(sum(|_| true));
    ConnectTotals {
        count,
        per_second: per_second(count),
        failed: sum(|failures| failures.error != UNFINISHED),
        failures,
        latency: connected.latency(),
    }
}

#[cfg(test)]
#[path = "net/tests.rs"]
mod tests;
