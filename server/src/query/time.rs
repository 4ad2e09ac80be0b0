//! Points in time as people write them: `now`, `-1h`, Unix seconds, RFC 3339.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::quantity;

/// Why a point in time cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot read {parameter}={text:?} as a time: write `now`, a duration before now such as \
     `-1h`, Unix seconds, or RFC 3339 such as `2026-01-31T12:00:00Z`"
)]
pub struct TimeError {
    /// Which parameter.
    pub parameter: &'static str,
    /// What was given.
    pub text: String,
}

/// The current time in nanoseconds since the Unix epoch; 0 before it.
pub fn now_unix_ns() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

/// Reads a point in time, relative ones from `now_unix_ns`.
///
/// # Errors
/// When the text is none of the forms that [`TimeError`] lists, or before 1970.
pub fn parse_unix_ns(
    parameter: &'static str,
    text: &str,
    now_unix_ns: u64,
) -> Result<u64, TimeError> {
    let error = || TimeError { parameter, text: text.to_owned() };
    let trimmed = text.trim();
    if trimmed == "now" {
        return Ok(now_unix_ns);
    }
    if let Some(ago) = trimmed.strip_prefix('-') {
        let ago: Duration = quantity::parse_duration(ago).map_err(|_unit| error())?;
        let ago_ns = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
        return Ok(now_unix_ns.saturating_sub(ago_ns));
    }
    if let Ok(instant) = trimmed.parse::<jiff::Timestamp>() {
        return u64::try_from(instant.as_nanosecond()).map_err(|_before_1970| error());
    }
    parse_seconds(trimmed).ok_or_else(error)
}

/// Decimal seconds to nanoseconds, exactly (a float would lose the last digits).
fn parse_seconds(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(seconds) || !all_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_763_000_000_000_000_000;

    #[track_caller]
    fn check(text: &str, expected: Option<u64>) {
        assert_eq!(parse_unix_ns("from", text, NOW).ok(), expected, "{text}");
    }

    #[test]
    fn now_and_durations_before_it() {
        check("now", Some(NOW));
        check("-1h", Some(NOW - 3_600_000_000_000));
        check("-90s", Some(NOW - 90_000_000_000));
        check("-7d", Some(NOW - 7 * 86_400_000_000_000));
    }

    #[test]
    fn unix_seconds_keep_every_digit() {
        check("1763000000", Some(NOW));
        check("1763000000.5", Some(NOW + 500_000_000));
        check("1763000000.123456789", Some(NOW + 123_456_789));
        check("0", Some(0));
    }

    #[test]
    fn rfc_3339_with_and_without_an_offset() {
        check("1970-01-01T00:00:01Z", Some(1_000_000_000));
        check("1970-01-01T01:00:01+01:00", Some(1_000_000_000));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", "yesterday", "1h", "-", "-1", "1e9", "99999999999999999999", "1.2.3"] {
            check(text, None);
        }
        check("1960-01-01T00:00:00Z", None);
    }
}
