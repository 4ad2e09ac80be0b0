//! Values in units that people read: three significant digits and a fitting unit.

/// (unit, how many of the smaller one it is), each with the next larger one after it.
const TIME: [(&str, f64); 7] = [
    ("ns", 1.0),
    ("µs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("min", 60e9),
    ("h", 3600e9),
    ("d", 86_400e9),
];
const BYTES: [(&str, f64); 7] = [
    ("B", 1.0),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("PiB", 1_125_899_906_842_624.0),
    ("EiB", 1_152_921_504_606_846_976.0),
];
/// Seconds are read well up to here; only then come minutes, hours and days.
const LONG_NS: f64 = 600e9;

/// A value of a profile in a fitting unit. Counts are written in full.
pub(crate) fn value(value: i64, unit: &str) -> String {
    if unit == "count" { grouped(value) } else { amount(value as f64, unit) }
}

/// A value per second.
pub(crate) fn rate(per_second: f64, unit: &str) -> String {
    format!("{}/s", amount(per_second, unit))
}

/// A share of 0 to 1 in percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// Part and whole as a share; 0 when there is no whole.
pub(crate) fn share(part: i64, whole: i64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A change of a share, in percentage points.
pub(crate) fn points(delta_pp: f64) -> String {
    // No "-0.0".
    let rounded = (delta_pp * 10.0).round() / 10.0 + 0.0;
    if rounded == 0.0 { "0.0 pp".to_owned() } else { format!("{rounded:+.1} pp") }
}

/// An amount in a fitting unit.
pub(crate) fn amount(amount: f64, unit: &str) -> String {
    match unit {
        "nanoseconds" | "ns" => time(amount),
        "microseconds" | "us" => time(amount * 1e3),
        "milliseconds" | "ms" => time(amount * 1e6),
        "seconds" | "s" => time(amount * 1e9),
        "bytes" | "byte" => scaled(amount, &BYTES),
        "count" | "" => digits(amount),
        other => format!("{} {other}", digits(amount)),
    }
}

fn time(ns: f64) -> String {
    if ns.abs() < LONG_NS { scaled(ns, &TIME[..4]) } else { scaled(ns, &TIME) }
}

fn scaled(amount: f64, units: &[(&str, f64)]) -> String {
    // What rounds to 1000 of a unit is shown in the next one; 999.5 would.
    let fitting = units.iter().rev().find(|(_, size)| amount.abs() >= size * 0.9995);
    let Some((unit, size)) = fitting.or(units.first()).copied() else { return digits(amount) };
    if amount == 0.0 { format!("0 {unit}") } else { format!("{} {unit}", digits(amount / size)) }
}

/// Three significant digits; whole numbers stay whole.
fn digits(number: f64) -> String {
    let magnitude = number.abs();
    if number.fract() == 0.0 && magnitude < 1000.0 || magnitude >= 99.95 {
        grouped(number.round() as i64)
    } else if magnitude >= 9.995 {
        format!("{number:.1}")
    } else {
        format!("{number:.2}")
    }
}

/// Thousands apart: 1,234,567.
pub(crate) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut out = String::from(if number < 0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cases: &[(i64, &str)], unit: &str) {
        for (number, expected) in cases {
            assert_eq!(value(*number, unit), *expected);
        }
    }

    #[test]
    fn times_have_a_fitting_unit() {
        check(
            &[
                (0, "0 ns"),
                (999, "999 ns"),
                (1_500, "1.50 µs"),
                (12_340_000, "12.3 ms"),
                (750_000_000, "750 ms"),
                (999_900_000, "1.00 s"),
                (1_000_000_000, "1 s"),
                (123_400_000_000, "123 s"),
                (900_000_000_000, "15 min"),
                (5_400_000_000_000, "1.50 h"),
                (864_000_000_000_000, "10 d"),
                (-750_000_000, "-750 ms"),
            ],
            "nanoseconds",
        );
        assert_eq!(value(15, "milliseconds"), "15 ms");
    }

    #[test]
    fn bytes_are_binary() {
        check(
            &[
                (0, "0 B"),
                (1023, "1,023 B"),
                (1024, "1 KiB"),
                (512, "512 B"),
                (1536, "1.50 KiB"),
                (1_073_741_824, "1 GiB"),
                (i64::MAX, "8 EiB"),
            ],
            "bytes",
        );
    }

    #[test]
    fn counts_are_grouped_and_unknown_units_are_named() {
        check(&[(0, "0"), (999, "999"), (1_234_567, "1,234,567"), (-1000, "-1,000")], "count");
        check(&[(i64::MIN, "-9,223,372,036,854,775,808")], "count");
        assert_eq!(value(12, "cycles"), "12 cycles");
    }

    #[test]
    fn rates_and_changes_keep_their_sign() {
        assert_eq!(rate(532e6, "nanoseconds"), "532 ms/s");
        assert_eq!(rate(0.5, "count"), "0.50/s");
        assert_eq!(points(12.34), "+12.3 pp");
        assert_eq!(points(-0.04), "0.0 pp");
        assert_eq!(points(-5.0), "-5.0 pp");
        assert_eq!(percent(share(3, 4)), "75.0%");
        assert_eq!(percent(share(3, 0)), "0.0%");
    }
}
