//! `everflame net`: who talks to whom over TCP, how long that takes, what fails, and which code it is.
//!
//! The report itself is [`everflame_profile::net`](mod@everflame_profile::net); here is how it looks on
//! a terminal.

use std::fmt::Write as _;

use everflame_profile::tcp::{Direction, Event, OTHER, Pattern};
use everflame_profile::{Kind, Latency, NetReport, NetStack, NetTotals, net};

use super::more;
use super::report::{View, code, process, profile};
use crate::args::NetArgs;
use crate::failure::Failure;
use crate::table::{Table, printable};
use crate::units::{rate, value};

/// Stacks that a table shows of a row, of what takes time.
const MAX_STACKS: usize = 3;

pub(crate) fn run(args: NetArgs) -> Result<(), Failure> {
    let view = View::new(&args.report)?;
    let mut report = net(&profile(args.report, Kind::Tcp)?);
    let is_empty = report.peers.is_empty();
    let hidden = view.cut(&mut report.peers);
    view.show(
        &report,
        is_empty,
        |width| text(&report, hidden, width),
        "nothing was done over TCP that is seen",
    )
}

fn text(report: &NetReport, hidden: usize, width: Option<usize>) -> String {
    let mut namespaces = report.peers.iter().map(|totals| totals.netns);
    let first = namespaces.next().flatten();
    let show_netns = namespaces.any(|netns| netns != first);
    let mut out = String::new();
    for (index, totals) in report.peers.iter().enumerate() {
        let _ = writeln!(out, "{}", headline(index + 1, totals, show_netns));
        out.push_str(&latencies(totals, width));
        out.push_str(&stacks(&totals.stacks, width));
        out.push('\n');
    }
    out.push_str(&more(hidden));
    out
}

fn headline(rank: usize, totals: &NetTotals, show_netns: bool) -> String {
    let NetTotals { connects, accepts, requests, .. } = totals;
    let mut out = format!("#{rank} ");
    if let Some(process) = process(totals.comm.as_deref(), totals.pid.as_deref()) {
        let _ = write!(out, "{process} ");
    }
    out.push_str(&ends(totals));
    if let Some(netns) = totals.netns.filter(|_| show_netns) {
        let _ = write!(out, " in netns {netns}");
    }
    let with_rate = |count, name, per_second| {
        format!("{} ({})", number_of(count, name), rate(per_second, "count"))
    };
    let pipelined = requests.patterns.get(Pattern::Pipelined.name()).copied().unwrap_or(0);
    let parts = [
        (connects.count, with_rate(connects.count, "connect", connects.per_second)),
        (connects.failed, format!("{} failed", value(connects.failed, "count"))),
        (accepts.count, with_rate(accepts.count, "accept", accepts.per_second)),
        (requests.count, with_rate(requests.count, "request", requests.per_second)),
        (pipelined, format!("{} of them pipelined", value(pipelined, "count"))),
        (totals.retransmits, number_of(totals.retransmits, "retransmit")),
        (totals.resets_sent, format!("{} sent", number_of(totals.resets_sent, "reset"))),
        (
            totals.resets_received,
            format!("{} received", number_of(totals.resets_received, "reset")),
        ),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0).map(|(_, part)| part);
    let parts: Vec<String> = parts.collect();
    if !parts.is_empty() {
        let _ = write!(out, ": {}", parts.join(", "));
    }
    printable(&out)
}

/// Whom the process connects to, or on which port it is connected to by whom.
fn ends(totals: &NetTotals) -> String {
    let remote = match (totals.remote.as_str(), totals.remote_port) {
        (OTHER, None) => "other addresses".to_owned(),
        (OTHER, Some(port)) => format!("port {port} of other addresses"),
        (address, None) => address.to_owned(),
        (address, Some(port)) if address.contains(':') => format!("[{address}]:{port}"),
        (address, Some(port)) => format!("{address}:{port}"),
    };
    let local = totals.local_port.map_or_else(String::new, |port| format!("on port {port} "));
    match totals.direction {
        Direction::Outbound => format!("to {remote}"),
        Direction::Inbound => format!("{local}from {remote}"),
        Direction::Unknown => format!("{local}with {remote} (either may have connected)"),
    }
}

fn number_of(count: i64, name: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {name}{plural}", value(count, "count"))
}

/// How long things took; nothing, if nothing did that has a length.
fn latencies(totals: &NetTotals, width: Option<usize>) -> String {
    let NetTotals { connects, accepts, rtt, requests, .. } = totals;
    let mut rows = Vec::new();
    let mut row = |name: &str, count: i64, latency: Latency, has_total: bool| {
        if count > 0 {
            let Latency { total_ns, p50_ns, p90_ns, p99_ns, max_ns } = latency;
            let mut cells = vec![name.to_owned(), value(count, "count")];
            let shown = |ns, is_shown| {
                if is_shown { value(ns, "nanoseconds") } else { String::new() }
            };
            // What has no length is not known to have taken none.
            let is_known = max_ns > 0;
            cells.extend([p50_ns, p90_ns, p99_ns, max_ns].map(|ns| shown(ns, is_known)));
            cells.push(shown(total_ns, is_known && has_total));
            rows.push(cells);
        }
    };
    let failures = connects.failures.iter().map(|failures| failures.count);
    let connected = failures.fold(connects.count, i64::saturating_sub);
    row(Event::Connect.name(), connected, connects.latency, true);
    for failures in &connects.failures {
        row(&failures.error, failures.count, failures.latency, true);
    }
    row(Event::Accept.name(), accepts.count, accepts.latency, true);
    let (p50_ns, p90_ns, p99_ns, max_ns) = (rtt.p50_ns, rtt.p90_ns, rtt.p99_ns, rtt.max_ns);
    let round_trips = Latency { total_ns: 0, p50_ns, p90_ns, p99_ns, max_ns };
    row(Event::Rtt.name(), rtt.count, round_trips, false);
    row(Event::Request.name(), requests.count, requests.latency, true);
    let streaming = Pattern::Streaming.name();
    let streamed = requests.patterns.get(streaming).copied().unwrap_or(0);
    row(streaming, streamed, Latency::default(), false);
    rendered(&["", "COUNT", "P50", "P90", "P99", "MAX", "TOTAL"], rows, width)
}

/// The code that waited longest; of what takes no time, the code that did it most often.
fn stacks(stacks: &[NetStack], width: Option<usize>) -> String {
    let timed = stacks.iter().filter(|stack| stack.latency_ns > 0).take(MAX_STACKS);
    let most_often = |event| {
        stacks.iter().find(|stack: &&NetStack| stack.event == event && stack.latency_ns == 0)
    };
    let untimed = [Event::Retransmit, Event::Reset].into_iter().filter_map(most_often);
    let rows = timed.chain(untimed).map(|stack| {
        let ns = stack.latency_ns;
        let time = if ns > 0 { value(ns, "nanoseconds") } else { String::new() };
        let code = if stack.stack.is_empty() { "-".to_owned() } else { code(&stack.stack) };
        vec![stack.event.name().to_owned(), value(stack.events, "count"), time, code]
    });
    rendered(&["", "COUNT", "TIME", "<STACK"], rows.collect(), width)
}

fn rendered(titles: &[&str], rows: Vec<Vec<String>>, width: Option<usize>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new(titles);
    rows.into_iter().for_each(|row| table.row(row));
    table.render(width)
}

#[cfg(test)]
mod tests {
    use everflame_profile::{
        AcceptTotals, ConnectFailures, ConnectTotals, RequestTotals, RoundTrips,
    };

    use super::*;

    fn latency(p50_ns: i64) -> Latency {
        Latency {
            total_ns: 10 * p50_ns,
            p50_ns,
            p90_ns: p50_ns,
            p99_ns: 2 * p50_ns,
            max_ns: 3 * p50_ns,
        }
    }

    fn outbound() -> NetTotals {
        let stack = |event, latency_ns, names: &[&str]| NetStack {
            event,
            stack: names.iter().map(|name| (*name).to_owned()).collect(),
            events: 12,
            latency_ns,
        };
        let syscall = "entry_SYSCALL_64_after_hwframe";
        NetTotals {
            direction: Direction::Outbound,
            pid: Some("7".to_owned()),
            comm: Some("api".to_owned()),
            remote: "10.0.0.5".to_owned(),
            remote_port: Some(5432),
            connects: ConnectTotals {
                count: 1000,
                per_second: 100.0,
                failed: 20,
                failures: vec![ConnectFailures {
                    error: "ECONNREFUSED".to_owned(),
                    count: 20,
                    latency: latency(50_000),
                }],
                latency: latency(250_000),
            },
            rtt: RoundTrips { count: 4, p50_ns: 200_000, max_ns: 900_000, ..RoundTrips::default() },
            requests: RequestTotals {
                count: 5000,
                per_second: 500.0,
                patterns: [("pipelined", 30), ("single", 4970), ("streaming", 8)]
                    .map(|(name, count)| (name.to_owned(), count))
                    .into(),
                latency: latency(2_000_000),
            },
            retransmits: 12,
            resets_received: 1,
            stacks: vec![
                stack(Event::Request, 9_000_000_000, &["tcp_sendmsg", syscall, "send", "query"]),
                stack(Event::Connect, 9_000, &["tcp_connect", syscall, "connect", "login"]),
                stack(Event::Retransmit, 0, &["tcp_retransmit_timer"]),
                stack(Event::Retransmit, 0, &["tcp_ack"]),
                stack(Event::Reset, 0, &[]),
            ],
            ..NetTotals::default()
        }
    }

    fn shown(peers: Vec<NetTotals>) -> String {
        text(&NetReport { seconds: 10.0, peers }, 0, None)
    }

    #[test]
    fn table_shows_both_ends_latencies_failures_and_stacks() {
        let expected = "\
#1 api (pid 7) to 10.0.0.5:5432: 1,000 connects (100/s), 20 failed, 5,000 requests (500/s), \
30 of them pipelined, 12 retransmits, 1 reset received
              COUNT     P50     P90     P99     MAX  TOTAL
     connect    980  250 µs  250 µs  500 µs  750 µs  2.50 ms
ECONNREFUSED     20   50 µs   50 µs  100 µs  150 µs  500 µs
         rtt      4  200 µs    0 ns    0 ns  900 µs
     request  5,000    2 ms    2 ms    4 ms    6 ms  20 ms
   streaming      8
            COUNT  TIME  STACK
   request     12   9 s  send < query
   connect     12  9 µs  connect < login
retransmit     12        tcp_retransmit_timer
     reset     12        -

";
        assert_eq!(shown(vec![outbound()]), expected);
    }

    #[test]
    fn who_connected_is_told_apart() {
        let check = |totals: NetTotals, expected: &str| {
            let text = shown(vec![totals]);
            assert_eq!(text.lines().next(), Some(expected));
        };
        let plain = NetTotals { remote: "::1".to_owned(), retransmits: 2, ..NetTotals::default() };
        let (outbound, inbound) = (Direction::Outbound, Direction::Inbound);
        let to = NetTotals { direction: outbound, remote_port: Some(443), ..plain.clone() };
        check(to.clone(), "#1 to [::1]:443: 2 retransmits");
        let accepts = AcceptTotals { count: 1, per_second: 0.1, ..AcceptTotals::default() };
        let from = NetTotals { direction: inbound, local_port: Some(80), ..plain.clone() };
        let from = NetTotals { accepts, ..from };
        check(from.clone(), "#1 on port 80 from ::1: 1 accept (0.10/s), 2 retransmits");
        // That it took no time is not known.
        assert!(shown(vec![from]).contains("\naccept      1\n"));
        let other = NetTotals { remote: OTHER.to_owned(), ..to };
        check(other, "#1 to port 443 of other addresses: 2 retransmits");
        let idle = NetTotals { retransmits: 0, local_port: Some(22), ..plain };
        check(idle, "#1 on port 22 with ::1 (either may have connected)");
    }

    #[test]
    fn namespaces_are_shown_if_there_are_several() {
        let row = |netns| NetTotals { netns: Some(netns), ..outbound() };
        assert!(!shown(vec![row(5), row(5)]).contains("netns"));
        let text = shown(vec![row(5), row(6)]);
        assert!(text.contains("#2 api (pid 7) to 10.0.0.5:5432 in netns 6: "), "{text}");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let comm = Some("a\u{1b}[2J".to_owned());
        assert!(!shown(vec![NetTotals { comm, ..outbound() }]).contains('\u{1b}'));
    }
}
