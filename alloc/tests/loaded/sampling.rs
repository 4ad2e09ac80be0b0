//! What is sampled is what chance says.

use crate::program::{compiled, output, with_library};

/// What `amounts` prints.
struct Amounts {
    samples: f64,
    live_all: f64,
    live_half: f64,
    live_none: f64,
    dropped: f64,
    bytes: f64,
}

fn amounts(size: u64, count: u64, period: u64, on: bool) -> Amounts {
    let text = output(
        with_library(compiled("cc", "amounts"), &[])
            .env("EVERFLAME_ALLOC_PERIOD", period.to_string())
            .args([size.to_string(), count.to_string(), u8::from(on).to_string()]),
    );
    let numbers: Vec<f64> =
        text.split_whitespace().map(|number| number.parse().expect("not a number")).collect();
    let &[samples, live_all, live_half, live_none, dropped, bytes] = numbers.as_slice() else {
        panic!("not what `amounts` prints: {text}");
    };
    Amounts { samples, live_all, live_half, live_none, dropped, bytes }
}

/// Within four standard errors of `trials` draws that come true with `probability`.
#[track_caller]
fn close(what: &str, found: f64, trials: f64, probability: f64) {
    let expected = trials * probability;
    let error = (trials * probability * (1.0 - probability)).sqrt();
    assert!(
        (found - expected).abs() <= 4.0 * error + 1.0,
        "{what}: {found}, expected {expected:.0} +- {error:.1}"
    );
}

fn check(size: u64, count: u64, period: u64) {
    let found = amounts(size, count, period, true);
    let count = count as f64;
    let probability = 1.0 - (-(size as f64) / period as f64).exp();
    close("samples", found.samples, count, probability);
    assert_eq!(found.live_all + found.dropped, found.samples, "live after all allocations");
    // Not of the whole, but of what was sampled, every second one goes.
    close("live after half", found.live_half, found.live_all, 0.5);
    assert_eq!(found.live_none, 0.0, "live after all frees");
    let bytes = size as f64 * count;
    // The bytes estimated are samples times a factor.
    let error = ((1.0 - probability) / (count * probability)).sqrt() + 1.0 / found.samples;
    let ratio = found.bytes / bytes;
    assert!((ratio - 1.0).abs() <= 4.0 * error, "{ratio} of the bytes, +- {error}");
}

#[test]
fn large_objects_are_sampled_by_their_size() {
    // 1 GiB in pieces of 64 KiB.
    check(64 << 10, 16 << 10, 32 << 10);
    check(64 << 10, 16 << 10, 512 << 10);
}

#[test]
fn small_objects_are_sampled_by_their_size() {
    // 256 MiB in pieces of 48 bytes.
    check(48, (256 << 20) / 48, 32 << 10);
    check(48, (256 << 20) / 48, 512 << 10);
    check(48, 100_000, 100);
}

#[test]
fn a_period_of_one_byte_samples_nearly_all() {
    check(1, 10_000, 1);
    check(16, 20_000, 1);
}

#[test]
fn a_full_table_is_counted() {
    // Four times as many as it can hold.
    let found = amounts(4096, 4 * 65_536, 1, true);
    assert_eq!(found.samples, 4.0 * 65_536.0);
    assert!(found.live_all > 64_000.0, "{} of 65536 slots are used", found.live_all);
    assert_eq!(found.live_all + found.dropped, found.samples);
    assert_eq!(found.live_none, 0.0);
}

#[test]
fn nothing_is_sampled_while_nobody_listens() {
    let found = amounts(48, 1_000_000, 1, false);
    assert_eq!(found.samples, 0.0);
    assert_eq!(found.live_all, 0.0);
    assert_eq!(found.bytes, 0.0);
}
