//! Compiled tables against gimli, for the executables and libraries of this machine.
//!
//! At the first and the last address of every row that gimli finds, and at a random one
//! between, a step by the table's rule must lead where gimli's rules lead: same return
//! address, stack pointer and frame pointer, from made-up registers and memory. Each
//! disagreement is printed. `EVERFLAME_ORACLE_SAMPLE=1` looks at all files.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod evaluate;
mod files;

use std::collections::BTreeMap;
use std::io::{Write, stderr};
use std::path::Path;
use std::time::Instant;

use everflame_agent_common::unwind::{Aarch64, Kind, PlainSign, Rule, Stop, X86_64, step};
use everflame_unwind::{Arch, InWords, Limits, Table, compile};
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, LittleEndian, Register, RegisterRule, UnwindContext,
    UnwindSection, Vendor,
};
use object::{Object, ObjectSection, ObjectSegment, SegmentFlags};

use self::evaluate::{Caller, Evaluator, MadeUp, Row, registers};

/// Of all addresses looked at, which are mostly where rows begin and end.
const MAX_UNSUPPORTED_PERCENT: f64 = 0.01;

/// Of one file or of all.
#[derive(Debug, Default)]
struct Tally {
    rows: u64,
    points: u64,
    /// Functions that gimli refuses to finish.
    refused: u64,
    /// The step leads somewhere else.
    wrong: u64,
    /// The table says that it cannot be done.
    unsupported: BTreeMap<String, u64>,
}

impl Tally {
    fn unsupported(&self) -> u64 {
        self.unsupported.values().sum()
    }
}

#[test]
fn tables_agree_with_gimli() {
    let mut total = Tally::default();
    let (mut files, mut bytes, mut rows_kept, mut go) = (0, 0, 0, 0);
    for path in files::sample() {
        let Ok(data) = std::fs::read(&path) else { continue };
        let Ok(elf) = object::File::parse(&*data) else { continue };
        if !matches!(elf.kind(), object::ObjectKind::Executable | object::ObjectKind::Dynamic) {
            continue;
        }
        let started = Instant::now();
        let table = match compile(&data.as_slice(), &Limits::default()) {
            Ok(table) => table,
            Err(error) => {
                let machine = elf.architecture();
                let is_ours =
                    matches!(machine, object::Architecture::X86_64 | object::Architecture::Aarch64);
                assert!(!is_ours || !elf.is_64(), "{}: {error}", path.display());
                continue;
            }
        };
        let compiled = started.elapsed();
        files += 1;
        bytes += table.stats.page_bytes;
        rows_kept += table.stats.rows;
        if table.stats.is_go {
            go += 1;
            check_go(&path, &table, &elf);
        }
        let tally = check(&path, &table, &elf);
        if tally.rows > 100_000 {
            let rate = table.stats.rows_read as f64 / compiled.as_secs_f64() / 1e6;
            say(&format!(
                "{}: {} rows read, {} kept, {:.2} bytes each, compiled in {compiled:.0?} \
                 ({rate:.1} M rows/s)",
                path.display(),
                table.stats.rows_read,
                table.stats.rows,
                table.stats.page_bytes as f64 / table.stats.rows as f64,
            ));
        }
        total.rows += tally.rows;
        total.points += tally.points;
        total.refused += tally.refused;
        total.wrong += tally.wrong;
        for (cause, count) in tally.unsupported {
            *total.unsupported.entry(cause).or_default() += count;
        }
    }
    let rate = total.unsupported() as f64 * 100.0 / total.points as f64;
    say(&format!(
        "{files} files ({go} of Go), {} rows, {} addresses: {} wrong, {} unsupported ({rate:.4} %), \
         {} functions that gimli refuses, {:.2} bytes a row",
        total.rows,
        total.points,
        total.wrong,
        total.unsupported(),
        total.refused,
        bytes as f64 / rows_kept as f64,
    ));
    for (cause, count) in &total.unsupported {
        say(&format!("  unsupported: {cause}: {count}"));
    }
    assert!(files > 0);
    assert_eq!(total.wrong, 0);
    assert!(rate < MAX_UNSUPPORTED_PERCENT, "{rate} %");
}

fn say(line: &str) {
    let _closed = writeln!(stderr(), "{line}");
}

/// Executable parts of a file: (address, size, file offset).
fn code(elf: &object::File<'_>) -> Vec<(u64, u64, u64)> {
    let is_code = |flags| matches!(flags, SegmentFlags::Elf { p_flags, .. } if p_flags & 1 != 0);
    elf.segments()
        .filter(|segment| is_code(segment.flags()))
        .map(|segment| (segment.address(), segment.file_range().1, segment.file_range().0))
        .collect()
}

/// Go keeps frame pointers where C's compiler has left no information.
fn check_go(path: &Path, table: &Table, elf: &object::File<'_>) {
    let Some(text) = elf.section_by_name(".text") else { return };
    let (start, size) = text.file_range().unwrap_or_default();
    let has_frame_pointers = |offset| table.rule_at(offset) == Rule::FRAME_POINTER;
    let found = (start..start + size).step_by(4096).any(has_frame_pointers);
    assert!(found, "{}", path.display());
}

fn check(path: &Path, table: &Table, elf: &object::File<'_>) -> Tally {
    let mut tally = Tally::default();
    let Some(section) = elf.section_by_name(".eh_frame") else { return tally };
    let data = section.data().unwrap();
    let mut eh_frame = EhFrame::new(data, LittleEndian);
    eh_frame.set_address_size(8);
    if table.arch == Arch::Aarch64 {
        eh_frame.set_vendor(Vendor::AArch64);
    }
    let address = |name| elf.section_by_name(name).map_or(0, |section| section.address());
    let bases = BaseAddresses::default()
        .set_eh_frame(section.address())
        .set_eh_frame_hdr(address(".eh_frame_hdr"))
        .set_text(address(".text"))
        .set_got(address(".got"));
    let code = code(elf);
    let offset_of = |svma: u64| {
        let (start, _, offset) =
            code.iter().find(|(start, size, _)| svma.wrapping_sub(*start) < *size)?;
        Some(offset + (svma - start))
    };
    let mut context = UnwindContext::new();
    let mut random = fastrand::Rng::with_seed(3);
    let mut entries = eh_frame.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
        if offset_of(fde.initial_address()).is_none() {
            continue;
        }
        let encoding = fde.cie().encoding();
        let evaluator = Evaluator { arch: table.arch, section: &eh_frame, encoding };
        let mut rows = fde.rows(&eh_frame, &bases, &mut context).unwrap();
        loop {
            let row = match rows.next_row() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error) => {
                    say(&format!(
                        "{} {:#x}: gimli: {error}",
                        path.display(),
                        fde.initial_address()
                    ));
                    tally.refused += 1;
                    break;
                }
            };
            let (start, end) = (row.start_address(), row.end_address().min(fde.end_address()));
            if start >= end {
                continue;
            }
            tally.rows += 1;
            let mut points = [start, end - 1, random.u64(start..end)];
            points.sort_unstable();
            for (at, svma) in points.into_iter().enumerate() {
                if at > 0 && points[at - 1] == svma {
                    continue;
                }
                let Some(offset) = offset_of(svma) else { continue };
                tally.points += 1;
                let rule = table.rule_at(offset);
                match compare(rule, table.arch, svma, row, &evaluator, &mut random) {
                    Ok(()) => {}
                    Err(Disagreement::Unsupported(cause)) => {
                        say(&format!("{} {svma:#x}: unsupported: {cause}", path.display()));
                        *tally.unsupported.entry(cause).or_default() += 1;
                    }
                    Err(Disagreement::Wrong(why)) => {
                        let rule = InWords { rule, arch: table.arch };
                        say(&format!("{} {svma:#x}: wrong: {rule}: {why}", path.display()));
                        tally.wrong += 1;
                    }
                }
            }
        }
    }
    tally
}

enum Disagreement {
    Unsupported(String),
    Wrong(String),
}

fn compare(
    rule: Rule,
    arch: Arch,
    ip: u64,
    row: &Row,
    evaluator: &Evaluator<'_>,
    random: &mut fastrand::Rng,
) -> Result<(), Disagreement> {
    let before = registers(ip, arch, random);
    let expected = evaluator.caller(row, &before);
    let mut regs = before;
    let stepped = match arch {
        Arch::X86_64 => step::<X86_64, PlainSign>(rule, &mut regs, &mut MadeUp),
        Arch::Aarch64 => step::<Aarch64, PlainSign>(rule, &mut regs, &mut MadeUp),
    };
    match (stepped, expected) {
        (Err(Stop::End), Some(Caller::None)) if rule.kind() == Kind::EndOfStack => Ok(()),
        (Ok(()), Some(expected)) if expected == Caller::Found(regs.ip, regs.sp, regs.fp) => Ok(()),
        (Err(Stop::BadRule), _) => Err(Disagreement::Unsupported(cause(arch, row))),
        // The step checks what gimli does not: that words are aligned and stacks grow down.
        (Err(Stop::BrokenChain), _) => {
            Err(Disagreement::Unsupported(format!("not a frame: {:?}", row.cfa())))
        }
        _ => Err(Disagreement::Wrong(format!(
            "{stepped:?} to {:x?}, but gimli to {expected:x?}",
            (regs.ip, regs.sp, regs.fp)
        ))),
    }
}

/// What about gimli's row cannot be said in a rule.
fn cause(arch: Arch, row: &Row) -> String {
    let (fp, ra) = match arch {
        Arch::X86_64 => (Register(6), Register(16)),
        Arch::Aarch64 => (Register(29), Register(30)),
    };
    let name = |rule: Option<RegisterRule<usize>>| match rule {
        None => "unspecified".to_owned(),
        Some(RegisterRule::Register(other)) => format!("in register {}", other.0),
        Some(RegisterRule::Expression(_)) => "at an expression".to_owned(),
        Some(RegisterRule::ValExpression(_)) => "an expression".to_owned(),
        Some(rule) => format!("{rule:?}"),
    };
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, .. } => format!("register {}", register.0),
        CfaRule::Expression(_) => "expression".to_owned(),
    };
    let (fp, ra) = (name(row.register(fp)), name(row.register(ra)));
    format!("cfa {cfa}, frame pointer {fp}, return address {ra}")
}
