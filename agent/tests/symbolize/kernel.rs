//! The running kernel's own functions.

use std::fs;

use everflame_agent::symbolize::KernelStatus;

use crate::binary::symbolizer;

/// Address and name of each of the kernel's functions.
fn kallsyms() -> Vec<(u64, String)> {
    let text = fs::read_to_string("/proc/kallsyms").unwrap();
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let kind = words.next()?;
        let name = words.next()?.to_owned();
        ("tT".contains(kind) && words.next().is_none() && address >> 63 == 1)
            .then_some((address, name))
    };
    text.lines().filter_map(symbol).collect()
}

#[test]
fn kernel_functions_resolve_to_their_names() {
    let mut symbolizer = symbolizer();
    if symbolizer.kernel_status() == KernelStatus::HiddenByKptrRestrict {
        eprintln!("skipped: {}", symbolizer.kernel_status());
        return;
    }
    let functions = kallsyms();
    let sampled: Vec<_> = functions.iter().step_by(97).collect();
    let addresses: Vec<u64> = sampled.iter().map(|(address, _)| *address).collect();
    let resolved = symbolizer.kernel(&addresses);
    for ((address, name), lines) in sampled.iter().zip(&resolved) {
        let Some(line) = lines.first() else {
            assert!(["_etext", "_einittext", "_end"].contains(&&**name), "{name} is unresolved");
            continue;
        };
        let found = &*line.function.name;
        let aliases = functions.iter().filter(|(other, _)| other == address);
        assert!(aliases.map(|(_, name)| &**name).any(|alias| alias == found), "{name}: {found}");
    }
}

#[test]
fn addresses_outside_the_kernel_are_unresolved() {
    let resolved = symbolizer().kernel(&[0, 0x1000, 0x7fff_ffff_f000, u64::MAX, 1 << 63]);
    assert!(resolved.iter().all(|lines| lines.is_empty()));
}

#[test]
fn known_kernel_frames_come_from_the_cache() {
    let mut symbolizer = symbolizer();
    let Some((address, _)) = kallsyms().into_iter().nth(1000) else { return };
    let first = symbolizer.kernel(&[address]);
    let again = symbolizer.kernel(&[address]);
    assert_eq!(first, again);
    let stats = symbolizer.stats();
    assert_eq!((stats.frames, stats.cache_misses), (2, 2 - stats.cache_hits));
}
