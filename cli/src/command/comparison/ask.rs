//! Asks a collector for comparisons.

use everflame_compare::{ComparedSide, Comparison};
use everflame_profile::Kind;
use everflame_proto::v1::{CompareRequest, Selection};

use crate::args::SidesArgs;
use crate::collector::{Collector, selection, time_range};
use crate::failure::Failure;
use crate::when::{Range, When};

/// The request for a comparison of a service.
pub(crate) fn request(
    service: &str,
    sides: &SidesArgs,
    versions: (Option<&str>, Option<&str>),
    selector: &str,
    now_unix_ns: i64,
) -> Result<CompareRequest, Failure> {
    let mut request = CompareRequest {
        service: service.to_owned(),
        selector: selector.to_owned(),
        length_ns: sides
            .length
            .map_or(0, |length| u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)),
        warm_up_ns: sides
            .warm_up
            .map(|warm_up| u64::try_from(warm_up.as_nanos()).unwrap_or(u64::MAX)),
        ..CompareRequest::default()
    };
    match (versions, &sides.from_range, &sides.to_range) {
        ((None, None), None, None) => {}
        ((Some(from), Some(to)), None, None) if !sides.last_deploy => {
            request.base_version = from.to_owned();
            request.compare_version = to.to_owned();
        }
        ((None, None), Some(from), Some(to)) if !sides.last_deploy => {
            let range = |text: &str| parse_range(text, now_unix_ns).map(time_range);
            request.base_range = Some(range(from)?);
            request.compare_range = Some(range(to)?);
        }
        _ => {
            return Err(Failure::usage(
                "give two versions (--from V1 --to V2), two times (--from-range A..B --to-range C..D), or \
                 neither for the last deploy",
            ));
        }
    }
    Ok(request)
}

/// The comparison of a kind.
pub(crate) fn compare(
    collector: &mut Collector,
    request: &CompareRequest,
    kind: Kind,
) -> Result<Comparison, Failure> {
    let request = CompareRequest { kind: kind.name().to_owned(), ..request.clone() };
    Ok(collector.compare(request)?)
}

/// The profiles of a side that was compared.
pub(crate) fn selection_of(
    comparison: &Comparison,
    side: &ComparedSide,
    selector: &str,
) -> Selection {
    let mut conditions = vec![format!("service={:?}", comparison.service)];
    if !side.name.is_empty() {
        conditions.push(format!("version={:?}", side.name));
    }
    let others = selector.trim().trim_start_matches('{').trim_end_matches('}').trim();
    if !others.is_empty() {
        conditions.push(others.to_owned());
    }
    let ns = |unix_ns: u64| i64::try_from(unix_ns).unwrap_or(i64::MAX);
    let range = Range { start_unix_ns: ns(side.start_unix_ns), end_unix_ns: ns(side.end_unix_ns) };
    selection(&comparison.kind, &format!("{{{}}}", conditions.join(",")), range, None)
}

/// Reads `A..B`.
fn parse_range(text: &str, now_unix_ns: i64) -> Result<Range, Failure> {
    let times = text.split_once("..").and_then(|(start, end)| {
        let end = if end.is_empty() { "now" } else { end };
        Some((start.parse::<When>().ok()?, end.parse::<When>().ok()?))
    });
    let Some((start, end)) = times else {
        return Err(Failure::usage(format!(
            "`{text}` is not a range of time; give something like -3h..-2h or \
             2026-03-01T12:00:00Z..2026-03-01T13:00:00Z"
        )));
    };
    let range =
        Range { start_unix_ns: start.unix_ns(now_unix_ns), end_unix_ns: end.unix_ns(now_unix_ns) };
    if range.is_empty() {
        return Err(Failure::usage(format!("`{text}` ends before it begins")));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000_000_000;
    const HOUR: i64 = 3_600_000_000_000;

    #[test]
    fn ranges_are_read() {
        let check = |text: &str, expected: Option<(i64, i64)>| {
            let found = parse_range(text, NOW).ok();
            let hours = found.map(|range| {
                ((range.start_unix_ns - NOW) / HOUR, (range.end_unix_ns - NOW) / HOUR)
            });
            assert_eq!(hours, expected, "{text}");
        };
        check("-3h..-2h", Some((-3, -2)));
        check("-3h..", Some((-3, 0)));
        check("2023-11-14T20:13:20Z..2023-11-14T21:13:20Z", Some((-2, -1)));
        for text in ["", "-3h", "..-2h", "-2h..-3h", "a..b"] {
            check(text, None);
        }
    }
}
