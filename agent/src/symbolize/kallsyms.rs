//! Reads `/proc/kallsyms`.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, Read};

use super::symbol_table::{End, RawSymbol, SymbolTable, SymbolTableBuilder};

/// kallsyms gives no sizes. A function without a successor ends here at the latest.
pub(super) const MAX_TAIL: u64 = 64 << 10;

/// The upper half of the address space, on every 64-bit Linux.
pub(super) fn is_kernel_address(address: u64) -> bool {
    address >> 63 == 1
}

/// What a reading of kallsyms found.
pub(super) struct Kallsyms {
    /// The kernel's own functions.
    pub(super) core: SymbolTable,
    /// Functions of modules and BPF programs; their names are followed by a tab and the
    /// module in brackets.
    pub(super) loadable: SymbolTable,
    /// Changes when the lines of `loadable` do.
    pub(super) loadable_digest: u64,
    /// Whether there is no address in it, which is how the kernel hides them.
    pub(super) all_zero: bool,
}

/// `with_core` is false where only modules and BPF programs are wanted.
///
/// Lines are `address type name` and, for what is not the kernel's own, `\t[module]`
/// (kernel/kallsyms.c, `s_show`). Per-CPU variables have small addresses on some kernels.
pub(super) fn read(kallsyms: impl Read, with_core: bool) -> io::Result<Kallsyms> {
    let mut reader = BufReader::with_capacity(64 << 10, kallsyms);
    let mut core = SymbolTableBuilder::default();
    let mut loadable = SymbolTableBuilder::default();
    let mut digest = DefaultHasher::new();
    let (mut lines, mut zeros) = (0_u64, 0_u64);
    let mut after_function = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Some(symbol) = parse_line(&line) else { continue };
        lines += 1;
        zeros += u64::from(symbol.address == 0);
        if !is_kernel_address(symbol.address) || (symbol.module.is_none() && !with_core) {
            continue;
        }
        let table = if symbol.module.is_some() { &mut loadable } else { &mut core };
        if symbol.module.is_some() {
            digest.write(&line);
        }
        if !symbol.is_function() {
            // The kernel's own symbols are in the order of their addresses, so that one
            // gap does for all data up to the next function.
            if symbol.module.is_some() || std::mem::take(&mut after_function) {
                table.push_gap(symbol.address);
            }
            continue;
        }
        after_function |= symbol.module.is_none();
        let stored = match symbol.module {
            Some(module) => table.name(&[symbol.name, b"\t", module]),
            None => table.name(&[symbol.name]),
        };
        let Some(name) = stored else { continue };
        let start = symbol.address;
        let end = End::NextSymbolOr(start.saturating_add(MAX_TAIL));
        table.push(RawSymbol { start, end, rank: symbol.rank(), name });
    }
    Ok(Kallsyms {
        core: core.finish(),
        loadable: loadable.finish(),
        loadable_digest: digest.finish(),
        all_zero: zeros == lines,
    })
}

struct KallsymsLine<'a> {
    address: u64,
    kind: u8,
    name: &'a [u8],
    /// With its brackets.
    module: Option<&'a [u8]>,
}

fn parse_line(line: &[u8]) -> Option<KallsymsLine<'_>> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let address = u64::from_str_radix(str::from_utf8(words.next()?).ok()?, 16).ok()?;
    let kind = *words.next()?.first()?;
    Some(KallsymsLine { address, kind, name: words.next()?, module: words.next() })
}

impl KallsymsLine<'_> {
    /// Text, but not the marks that linker scripts put around it.
    fn is_function(&self) -> bool {
        matches!(self.kind, b't' | b'T' | b'w' | b'W')
            && !matches!(self.name, b"_etext" | b"_einittext" | b"_end")
    }

    /// Prefers what perf prefers among aliases: strong over weak, global over local,
    /// fewer leading underscores, and never the mark of a section's start.
    fn rank(&self) -> u8 {
        let mark = matches!(self.name, b"_text" | b"_stext" | b"_sinittext" | b"startup_64");
        let weak = self.kind.eq_ignore_ascii_case(&b'w');
        let local = self.kind.is_ascii_lowercase();
        let underscores = self.name.iter().take_while(|byte| **byte == b'_').count().min(7);
        let underscores = u8::try_from(underscores).unwrap_or(7);
        u8::from(mark) << 5 | u8::from(weak) << 4 | u8::from(local) << 3 | underscores
    }
}
