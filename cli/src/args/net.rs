//! The arguments of `everflame net`.

use clap::Args;

use super::ReportArgs;

const NET_EXAMPLES: &str = "\
Examples:
  everflame net                                        this host, for 10 seconds
  everflame net --pid 4711 --duration 30s
  everflame net --format json -- ./import              until it ends
  everflame net --selector '{service=\"api\"}' --from -15m
      what the collector has; '{}' is everything
  everflame net tcp.pb.gz                              of everflame record --kind tcp

A row is what one process does with one remote address. \"to\" is an address and port that it
connects to, \"from\" an address whose connections it accepts, on its own port: the two are never in
one row. What was waited for longest, for connections and answers, is first.

connect     from the first SYN to when the connection is there. Those that fail have rows of their
            own, by error, with the time until then; aborted: the program gave up; unfinished: it
            went on when the recording ended. What fails before a SYN is sent, as without a
            route, is not seen.
accept      from when a connection is there to when the program accepts it, where the kernel lets
            it be seen.
rtt         the kernel's smoothed round-trip times, one for each connection that was used.
request     of who connected, from when the last send returned to when the program reads the first
            byte of the answer; of who accepted, from the last byte that was read to the first
            that is sent. Of pipelined requests it is the time of the first. Requests whose
            answer has not begun are not seen.
streaming   what both ends send without waiting for each other: counted, not timed.

Retransmits are segments. Percentiles are right to within a quarter of themselves.";

/// Show who talks to whom over TCP, how long that takes, what fails, and which code it is
#[derive(Debug, Args)]
#[command(after_help = NET_EXAMPLES)]
pub(crate) struct NetArgs {
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}
