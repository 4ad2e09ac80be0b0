//! Durations as people type them: `30s`, `5m`, `1500ms`.

use std::time::Duration;

/// Reads a whole number with one of the units ms, s, m, h.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|error| format!("no number: {error}"))?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("needs a unit: ms, s, m or h, such as 30s".to_owned()),
    };
    number
        .checked_mul(unit_ms)
        .filter(|&ms| ms > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| "must be more than nothing and less than forever".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Duration, parse};

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        let check = |text, expected: Option<u64>| {
            assert_eq!(parse(text).ok(), expected.map(Duration::from_millis), "{text:?}");
        };
        check("30s", Some(30_000));
        check("1500ms", Some(1_500));
        check("2m", Some(120_000));
        check("1h", Some(3_600_000));
        check("30", None);
        check("s", None);
        check("0s", None);
        check("-1s", None);
        check("1 s", None);
        check("99999999999999999999s", None);
        check("18446744073709551615h", None);
    }
}
