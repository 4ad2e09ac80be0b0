//! Sizes on command lines.

/// Parses a number of bytes, such as `256MiB`.
///
/// # Errors
/// What is wrong, for people.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("`{unit}` is not a unit; use KiB, MiB or GiB")),
    };
    let Ok(number) = number.parse::<u64>() else {
        return Err("a size looks like 256MiB".to_owned());
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too large"))
}

/// Parses how much memory a sample stands for: up to 1 GiB, as programs count in 32 bits.
///
/// # Errors
/// What is wrong, for people.
pub fn parse_sampling_period(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        bytes @ 1..=MAX_SAMPLING_PERIOD => Ok(bytes),
        _ => Err("a sample stands for 1 byte to 1GiB".to_owned()),
    }
}

const MAX_SAMPLING_PERIOD: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("7"), Ok(7));
        assert!(parse_size("1GB").unwrap_err().contains("GiB"));
        assert!(parse_size("MiB").is_err());
        assert!(parse_size("99999999999GiB").unwrap_err().contains("too large"));
    }

    #[test]
    fn sampling_periods_have_bounds() {
        assert_eq!(parse_sampling_period("1GiB"), Ok(1 << 30));
        assert!(parse_sampling_period("0").is_err());
        assert!(parse_sampling_period("2GiB").unwrap_err().contains("1GiB"));
    }
}
