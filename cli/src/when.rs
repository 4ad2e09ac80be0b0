//! Points in time and durations as people type them.
//!
//! A time is RFC 3339 (`2026-03-01T12:00:00Z`), seconds since the Unix epoch, `now`, or
//! relative to now (`-1h`, `-1h30m`, `now-2d`). A duration is numbers with units
//! (`10s`, `1m30s`, `500ms`) or plain seconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;

const NS_PER_SECOND: i64 = 1_000_000_000;
const UNITS: [(&str, i64); 7] = [
    ("ns", 1),
    ("ms", 1_000_000),
    ("s", NS_PER_SECOND),
    ("m", 60 * NS_PER_SECOND),
    ("h", 3600 * NS_PER_SECOND),
    ("d", 86_400 * NS_PER_SECOND),
    ("w", 7 * 86_400 * NS_PER_SECOND),
];

/// A point in time as it was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// So long before now.
    BeforeNow { ns: i64 },
    /// Since the Unix epoch.
    At { unix_ns: i64 },
}

impl When {
    pub(crate) const NOW: Self = Self::BeforeNow { ns: 0 };

    pub(crate) fn unix_ns(self, now_unix_ns: i64) -> i64 {
        match self {
            Self::BeforeNow { ns } => now_unix_ns.saturating_sub(ns),
            Self::At { unix_ns } => unix_ns,
        }
    }
}

/// Why a time or a duration was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WhenError {
    #[error(
        "not a time; give RFC 3339 (2026-03-01T12:00:00Z), seconds since 1970, `now`, or \
         something like `-1h` or `-2d`"
    )]
    Time,
    #[error("not a duration; give something like 10s, 500ms or 1m30s")]
    Duration,
}

impl FromStr for When {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<Self, WhenError> {
        let relative = text.strip_prefix("now").unwrap_or(text);
        if relative.is_empty() && !text.is_empty() {
            return Ok(Self::NOW);
        }
        if let Some(ago) = relative.strip_prefix('-') {
            let ns = parse_ns(ago).ok_or(WhenError::Time)?;
            return Ok(Self::BeforeNow { ns });
        }
        if let Some(unix_ns) = decimal_ns(text, NS_PER_SECOND) {
            return Ok(Self::At { unix_ns });
        }
        let timestamp: Timestamp = text.parse().or(Err(WhenError::Time))?;
        let unix_ns = i64::try_from(timestamp.as_nanosecond()).or(Err(WhenError::Time))?;
        Ok(Self::At { unix_ns })
    }
}

/// Parses a duration that may be nothing.
pub(crate) fn parse_duration_or_none(text: &str) -> Result<Duration, WhenError> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// Parses a duration that is longer than nothing.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, WhenError> {
    let ns = parse_ns(text).or_else(|| decimal_ns(text, NS_PER_SECOND));
    let ns = ns.and_then(|ns| u64::try_from(ns).ok()).filter(|ns| *ns > 0);
    ns.map(Duration::from_nanos).ok_or(WhenError::Duration)
}

/// The time between two points: [start, end).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start_unix_ns: i64,
    pub(crate) end_unix_ns: i64,
}

impl Range {
    pub(crate) fn length_ns(self) -> i64 {
        self.end_unix_ns.saturating_sub(self.start_unix_ns)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.start_unix_ns >= self.end_unix_ns
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (rfc3339(self.start_unix_ns), rfc3339(self.end_unix_ns));
        write!(f, "between {start} and {end}")
    }
}

/// A time to the second, as RFC 3339 in UTC.
pub(crate) fn rfc3339(unix_ns: i64) -> String {
    Timestamp::from_second(unix_ns.div_euclid(NS_PER_SECOND))
        .map_or_else(|_| unix_ns.to_string(), |time| time.to_string())
}

pub(crate) fn now_unix_ns() -> i64 {
    i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Numbers with units, one after the other; each number may have decimals.
fn parse_ns(mut text: &str) -> Option<i64> {
    let mut sum = 0_i64;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let (number, rest) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
        let unit_len = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit_len);
        let (_, ns) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(decimal_ns(number, *ns)?)?;
        text = rest;
    }
    Some(sum)
}

/// `number` times `unit_ns`, exact to the nanosecond.
fn decimal_ns(number: &str, unit_ns: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let whole_ns = whole.parse::<i64>().ok()?.checked_mul(unit_ns)?;
    let mut fraction_ns = 0;
    let mut place_ns = unit_ns;
    for digit in fraction.bytes() {
        place_ns /= 10;
        fraction_ns += i64::from(digit - b'0') * place_ns;
    }
    whole_ns.checked_add(fraction_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000 * NS_PER_SECOND;

    fn check(text: &str, expected_unix_s: Option<i64>) {
        let unix_ns = text.parse::<When>().ok().map(|when| when.unix_ns(NOW));
        assert_eq!(unix_ns, expected_unix_s.map(|s| s * NS_PER_SECOND), "{text}");
    }

    #[test]
    fn times_are_absolute_or_relative() {
        check("now", Some(1_700_000_000));
        check("-1h", Some(1_700_000_000 - 3600));
        check("-1h30m", Some(1_700_000_000 - 5400));
        check("-1.5h", Some(1_700_000_000 - 5400));
        check("now-2d", Some(1_700_000_000 - 2 * 86_400));
        check("-1w", Some(1_700_000_000 - 7 * 86_400));
        check("1600000000", Some(1_600_000_000));
        check("2020-09-13T12:26:40Z", Some(1_600_000_000));
        check("2020-09-13T14:26:40+02:00", Some(1_600_000_000));
    }

    #[test]
    fn other_times_are_refused() {
        for text in [
            "",
            "-",
            "yesterday",
            "-1",
            "-1y",
            "-h",
            "--1h",
            "-1h30",
            "1h",
            "+1h",
            "now1h",
            "99999999999999999999",
            "-99999999999w",
            "2020-13-01T00:00:00Z",
            "1.",
            ".5",
            "１",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn fractions_of_a_second_are_exact() {
        let when = "1600000000.123456789".parse::<When>();
        assert_eq!(when, Ok(When::At { unix_ns: 1_600_000_000_123_456_789 }));
    }

    #[test]
    fn durations_have_units_or_are_seconds() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        for text in ["0", "0s", "-1s", "", "s", "1x", "1s1"] {
            assert_eq!(parse_duration(text), Err(WhenError::Duration), "{text}");
        }
    }

    #[test]
    fn ranges_read_well() {
        let range = Range { start_unix_ns: 0, end_unix_ns: NOW + 1 };
        assert_eq!(range.to_string(), "between 1970-01-01T00:00:00Z and 2023-11-14T22:13:20Z");
        assert!(!range.is_empty() && Range { end_unix_ns: 0, ..range }.is_empty());
    }
}
