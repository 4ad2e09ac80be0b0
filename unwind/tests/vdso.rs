//! The kernel's own library, which is in memory only.

use std::fs::File;
use std::io::{Write, stderr};
use std::os::unix::fs::FileExt;

use everflame_agent_common::unwind::Kind;
use everflame_unwind::{Limits, Source, compile};

/// The vDSO of this process.
fn image() -> Option<Vec<u8>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let mut image = vec![0; (end - start) as usize];
    File::open("/proc/self/mem").ok()?.read_exact_at(&mut image, start).ok()?;
    Some(image)
}

#[test]
fn vdso_is_compiled_from_memory() {
    let Some(image) = image() else {
        let _closed = writeln!(stderr(), "skipped: this process has no vDSO that can be read");
        return;
    };
    let table = compile(&image.as_slice(), &Limits::default()).unwrap();
    assert_eq!(table.stats.source, Source::EhFrame);
    assert!(table.stats.functions > 3, "{:?}", table.stats);
    assert!(table.stats.rows_by_kind[Kind::Cfa as usize] > 3, "{:?}", table.stats);
    assert_eq!(table.stats.functions_malformed, 0);
}
