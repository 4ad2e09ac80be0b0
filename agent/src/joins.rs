//! Requests to disks and TCP connections, each with the stack that began it.

use everflame_agent_common::block::Operation;
use everflame_agent_common::event::Kind;
use everflame_agent_common::tcp::{Connection, Flags, Happened, Pattern, UNFINISHED, What};

use crate::collect::{Io, Sample, ThreadName};
use crate::process::Process;
use crate::starts::{Ended, Found, Start, Starts};

/// Requests to disks under way, at most: more than any host's disks take at once. Those that the kernel has
/// merged into others never end.
const MAX_REQUESTS: usize = 32 * 1024;

/// Connections, at most; as many as the programs follow.
const MAX_CONNECTIONS: usize = 32 * 1024;

/// Turns that are not answered, at most.
const MAX_TURNS: usize = 16 * 1024;

/// What is missing in profiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// What was forgotten before it ended.
    pub forgotten: u64,
    /// What has happened without that its beginning was seen.
    pub unmatched: u64,
}

/// What has begun and goes on.
#[derive(Debug)]
pub(crate) struct Joins {
    requests: Starts<Process>,
    connections: Starts<Process>,
    turns: Starts<Process>,
    /// When round-trip times were last reported.
    reported_ns: u64,
}

impl Default for Joins {
    fn default() -> Self {
        Self {
            requests: Starts::new(MAX_REQUESTS),
            connections: Starts::new(MAX_CONNECTIONS),
            turns: Starts::new(MAX_TURNS),
            reported_ns: 0,
        }
    }
}

impl Joins {
    /// Where a sample's beginning is kept, if it is one.
    fn beginning(&mut self, sample: &Sample) -> Option<(&mut Starts<Process>, Start)> {
        match *sample.io.as_deref()? {
            Io::Started(started) => {
                Some((&mut self.requests, Start { id: started.id, start_ns: started.start_ns }))
            }
            Io::TcpStarted(started) => {
                let starts = if started.is_turn { &mut self.turns } else { &mut self.connections };
                Some((starts, Start { id: started.id, start_ns: started.start_ns }))
            }
            Io::Tcp(Happened { what: What::Accept, id, start_ns, .. }) => {
                Some((&mut self.connections, Start { id, start_ns }))
            }
            _ => None,
        }
    }

    /// Whether something begins with a sample.
    pub(crate) fn is_beginning(&mut self, sample: &Sample) -> bool {
        self.beginning(sample).is_some()
    }

    /// A sample's stack is being finished.
    pub(crate) fn await_stack(&mut self, sample: &Sample) {
        if let Some((starts, start)) = self.beginning(sample) {
            starts.await_stack(start);
        }
    }

    /// Nobody has asked for a sample.
    pub(crate) fn ignore(&mut self, sample: &Sample) {
        if let Some((starts, start)) = self.beginning(sample) {
            starts.ignore(start);
        }
    }

    /// Something begins with a sample. Gives what is to be counted of it already.
    pub(crate) fn begin(&mut self, sample: Sample, process: &Process) -> Vec<Ended<Process>> {
        // That a connection is accepted is an event, too.
        let own = matches!(sample.io.as_deref(), Some(Io::Tcp(_)))
            .then(|| (sample.clone(), process.clone()));
        let Some((starts, start)) = self.beginning(&sample) else { return Vec::new() };
        own.into_iter().chain(starts.begin(start, sample, process.clone())).collect()
    }

    /// Looks up what a sample belongs to that comes without a stack. One that does not is not known.
    pub(crate) fn happen(&mut self, sample: Sample) -> Found<Process> {
        match sample.io.as_deref() {
            Some(&Io::Done(done, _)) => {
                let start = Start { id: done.id, start_ns: done.start_ns };
                let is_last = done.operation() != Operation::Flush;
                match self.requests.happen(start, sample, is_last) {
                    // There is nothing to know of it.
                    Found::Unknown(_) => Found::Taken,
                    found => found,
                }
            }
            Some(&Io::Tcp(happened)) => self.happen_to_connection(happened, sample),
            _ => Found::Unknown(sample),
        }
    }

    fn happen_to_connection(&mut self, happened: Happened, sample: Sample) -> Found<Process> {
        let start = Start { id: happened.id, start_ns: happened.start_ns };
        let is_end = happened.what == What::Rtt;
        let is_old = is_end && (sample.value == 0 || happened.since_ns <= self.reported_ns);
        // With a stack of its own, or of what is not sampled.
        if happened.what == What::Accept || start.start_ns == 0 {
            return if is_old { Found::Taken } else { Found::Unknown(sample) };
        }
        let is_turn = happened.what == What::Request;
        let starts = if is_turn { &mut self.turns } else { &mut self.connections };
        match starts.happen(start, sample, is_turn || is_end) {
            Found::Joined(_) | Found::Unknown(_) if is_old => Found::Taken,
            found => found,
        }
    }

    /// What is known of connections that are there at the end of a window, which `now_ns` is in the next one:
    /// the round-trip times of those that were used in it. If it `is_last`, also those that are not there yet.
    pub(crate) fn report(
        &mut self,
        connections: impl Iterator<Item = (u64, Connection)>,
        now_ns: u64,
        is_last: bool,
    ) -> Vec<Found<Process>> {
        let mut found = Vec::new();
        for (id, connection) in connections.filter(|(_, c)| !c.is(Flags::IGNORED)) {
            let start_ns = if connection.is(Flags::HAS_STACK) { connection.opened_ns } else { 0 };
            let (what, value) = if connection.is(Flags::CONNECTING) && is_last {
                (What::Connect, now_ns.saturating_sub(connection.opened_ns))
            } else if connection.rtt_us != 0 && connection.rtt_ns > self.reported_ns {
                (What::Rtt, u64::from(connection.rtt_us) * 1000)
            } else {
                continue;
            };
            let has_failed = what == What::Connect;
            let happened = Happened {
                id,
                start_ns,
                remote: connection.remote,
                ports: connection.ports,
                netns: connection.netns,
                what,
                direction: connection.flags & (Flags::OUTBOUND | Flags::INBOUND),
                pattern: Pattern::Single,
                error: if has_failed { UNFINISHED } else { 0 },
                has_failed,
                since_ns: 0,
            };
            let (pid, tid) = ((connection.owner >> 32) as u32, connection.owner as u32);
            let mut name = [0; 16];
            name[..8].copy_from_slice(&connection.thread_name[0].to_ne_bytes());
            name[8..].copy_from_slice(&connection.thread_name[1].to_ne_bytes());
            let count = if has_failed { u64::from(connection.opens) } else { 1 };
            let io = Some(Box::new(Io::Tcp(happened)));
            let about = Sample::about(Kind::Tcp, pid, tid, ThreadName(name));
            let sample = Sample { value, count, io, ..about };
            let start = Start { id, start_ns };
            if count == 0 {
                continue;
            }
            found.push(if start_ns == 0 {
                Found::Unknown(sample)
            } else {
                self.connections.happen(start, sample, false)
            });
        }
        self.reported_ns = now_ns;
        found
    }

    /// Requests to disks that are in no profile.
    pub(crate) fn missed_requests(&self) -> Missed {
        missed(&self.requests)
    }

    /// Connections and requests on them that are without their stacks.
    pub(crate) fn missed_connections(&self) -> Missed {
        let (connections, turns) = (missed(&self.connections), missed(&self.turns));
        Missed {
            forgotten: connections.forgotten + turns.forgotten,
            unmatched: connections.unmatched + turns.unmatched,
        }
    }
}

fn missed(starts: &Starts<Process>) -> Missed {
    Missed { forgotten: starts.forgotten(), unmatched: starts.unmatched() }
}
