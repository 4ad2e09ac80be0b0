//! The parts that need no process around them: distances between samples, the table of live objects.

#[path = "../src/distance.rs"]
mod distance;
#[path = "../src/live.rs"]
#[expect(dead_code, reason = "the process's table is the library's")]
mod live;

use distance::{distance, next_random, seed};
use live::{Entered, Live, SLOTS};

/// The exact one, rounded down.
fn exact(random: u64, period: u64) -> f64 {
    let u = random as f64 / 2f64.powi(64);
    -u.ln() * period as f64
}

fn check_distance(random: u64, period: u64) {
    let found = distance(random, period) as f64;
    let exact = exact(random, period);
    let error = (found - exact).abs();
    // Rounded down to a byte, and 2^-31 of the period for the digits that are not computed.
    assert!(error <= 1.0 + exact * 1e-9 + period as f64 / 2e9, "{random}: {found}, not {exact}");
}

#[test]
fn a_distance_is_a_logarithm() {
    for period in [1, 100, 512 << 10, 1 << 40] {
        for shift in 0..64 {
            check_distance(u64::MAX >> shift, period);
            check_distance(1 << shift, period);
            check_distance((1 << shift) | 0x5555, period);
        }
        let mut state = seed(7);
        for _ in 0..10_000 {
            check_distance(next_random(&mut state), period);
        }
    }
    // Periods that nobody means.
    assert!(distance(u64::MAX, 0) >= 0);
    assert!(distance(1, u64::MAX) > 0);
    assert!(distance(0, 100) > 0);
}

#[test]
fn distances_are_exponential() {
    let period = 512 << 10;
    let mut state = seed(1);
    let draws = 200_000;
    let mut sum = 0.0;
    let mut over = [0u32; 6];
    for _ in 0..draws {
        let distance = distance(next_random(&mut state), period) as f64 / period as f64;
        sum += distance;
        for (limit, over) in over.iter_mut().enumerate() {
            *over += u32::from(distance >= limit as f64);
        }
    }
    let draws = f64::from(draws);
    // The standard deviation of an exponential distribution is its mean.
    assert!((sum / draws - 1.0).abs() < 4.0 / draws.sqrt(), "mean {}", sum / draws);
    for (limit, over) in over.into_iter().enumerate() {
        let p = (-(limit as f64)).exp();
        let error = (p * (1.0 - p) / draws).sqrt();
        let found = f64::from(over) / draws;
        assert!((found - p).abs() <= 4.0 * error, "{found} beyond {limit}, not {p}");
    }
}

#[test]
fn a_seed_is_never_zero() {
    // What the finaliser maps to 0.
    assert_ne!(seed(0u64.wrapping_sub(0x9e37_79b9_7f4a_7c15)), 0);
    assert_ne!(seed(1), seed(2));
}

fn object(number: usize) -> *mut u8 {
    (0x7f00_0000_0000 + number * 48 / 16 * 16) as *mut u8
}

#[test]
fn an_object_is_found_once_with_its_size() {
    static TABLE: Live = Live::new();
    let table = &TABLE;
    assert!(!table.may_contain(object(1)));
    assert_eq!(table.remove(object(1)), None);
    assert_eq!(table.enter(object(1), 11), Entered::New);
    assert_eq!(table.enter(object(2), 22), Entered::New);
    assert!(table.may_contain(object(1)));
    assert!(table.may_contain(object(2)));
    assert_eq!(table.enter(object(1), 111), Entered::Again);
    assert_eq!(table.remove(object(1)), Some(111));
    assert_eq!(table.remove(object(1)), None);
    assert_eq!(table.remove(object(2)), Some(22));
    assert!(!table.may_contain(object(1)));
    assert_eq!(table.remove(std::ptr::null_mut()), None);
}

#[test]
fn what_is_watched_stays_watched() {
    static TABLE: Live = Live::new();
    let table = &TABLE;
    table.watch(object(5));
    assert_eq!(table.enter(object(5), 1), Entered::New);
    assert_eq!(table.remove(object(5)), Some(1));
    assert!(table.may_contain(object(5)));
    assert_eq!(table.remove(object(5)), None);
}

#[test]
fn a_table_becomes_nearly_full() {
    static TABLE: Live = Live::new();
    let table = &TABLE;
    let kept: Vec<usize> =
        (0..SLOTS).filter(|&number| table.enter(object(number), number) == Entered::New).collect();
    assert!(kept.len() > SLOTS * 97 / 100, "{} of {SLOTS}", kept.len());
    let dropped = (0..SLOTS * 3 / 4).filter(|number| kept.binary_search(number).is_err()).count();
    assert_eq!(dropped, 0, "of those entered while it was not full");
    for number in kept {
        assert!(table.may_contain(object(number)));
        assert_eq!(table.remove(object(number)), Some(number));
    }
    assert!((0..SLOTS).all(|number| !table.may_contain(object(number))));
}

#[test]
fn counters_of_the_filter_that_ran_over_say_yes() {
    static TABLE: Live = Live::new();
    let table = &TABLE;
    // More than 255 objects within one KiB, as no allocator would do it.
    let objects: Vec<*mut u8> = (0..400).map(|i| (0x10_0000 + i * 2) as *mut u8).collect();
    let kept: Vec<_> =
        objects.into_iter().filter(|&object| table.enter(object, 1) == Entered::New).collect();
    assert!(kept.iter().all(|&object| table.may_contain(object)));
    assert!(kept.iter().all(|&object| table.remove(object) == Some(1)));
}

#[test]
fn threads_enter_and_remove_at_once() {
    static TABLE: Live = Live::new();
    let table = &TABLE;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for turn in 0..50 {
                    let numbers = (thread * 5000..(thread + 1) * 5000).step_by(1 + turn % 3);
                    for number in numbers.clone() {
                        assert_eq!(table.enter(object(number), number), Entered::New);
                    }
                    for number in numbers {
                        assert_eq!(table.remove(object(number)), Some(number));
                    }
                }
            });
        }
    });
    assert!((0..20_000).all(|number| !table.may_contain(object(number))));
}
