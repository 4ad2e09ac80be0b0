//! Sizes and durations as people write them: `256MiB`, `7d`, `1h30m`.

use std::time::Duration;

/// Why a quantity cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a size.
    #[error(
        "cannot read {text:?} as a size: write bytes, or a number with B, KiB, MiB, GiB or TiB"
    )]
    Size {
        /// What was given.
        text: String,
    },
    /// A size that does not work.
    #[error("the least size is {min_mib}MiB")]
    TooSmall {
        /// What works.
        min_mib: u64,
    },
    /// Not a duration.
    #[error(
        "cannot read {text:?} as a duration: write numbers with ms, s, m, h, d or w, such as 1h30m"
    )]
    Duration {
        /// What was given.
        text: String,
    },
}

/// Reads a size in bytes. Units are binary; `K`, `KB` and `KiB` are the same.
///
/// # Errors
/// When it is not a number with a known unit, or does not fit.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let error = || QuantityError::Size { text: text.to_owned() };
    let (number, unit) = split_unit(text.trim()).ok_or_else(error)?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(error()),
    };
    number.checked_mul(1 << shift).ok_or_else(error)
}

/// Reads a duration.
///
/// # Errors
/// When it is not a sequence of numbers with units, or does not fit.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let error = || QuantityError::Duration { text: text.to_owned() };
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let (number, tail) = split_unit(rest).ok_or_else(error)?;
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at_checked(unit_len).ok_or_else(error)?;
        let unit_ms: u64 = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(error()),
        };
        let part = number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(error)?;
        total = total.checked_add(part).ok_or_else(error)?;
        rest = next;
    }
    Ok(total)
}

/// A leading number, and what follows it.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(parse_bytes("0"), Ok(0));
        assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
        assert_eq!(parse_bytes("10 GB"), Ok(10 << 30));
        assert_eq!(parse_bytes("4k"), Ok(4096));
    }

    #[test]
    fn durations_add_up() {
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "1x", "-1", "1.5GiB", "99999999999TiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        for text in ["", "x", "5", "1h30", "-1h", "99999999999999999w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
