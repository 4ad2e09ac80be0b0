//! A compact, sorted table of named address ranges: what kallsyms and ELF symbol tables
//! become.
//!
//! The invariant is that the ranges are disjoint, so that a lookup is one binary search
//! and an address past a symbol's end finds nothing rather than the nearest name. An
//! entry takes 16 bytes plus its name, a tenth of what a map of strings would take for
//! the 100,000 symbols of a kernel.

use std::iter;

/// A symbol as a file lists it, before overlaps and aliases are sorted out.
pub(super) struct RawSymbol {
    /// The first address.
    pub(super) start: u64,
    pub(super) end: End,
    /// Which of several names for one address to keep: the smallest.
    pub(super) rank: u8,
    /// The name, as [`SymbolTableBuilder::name`] returned it.
    pub(super) name: NameOffset,
}

/// Where a name starts: in the table's names, or wherever its maker keeps them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NameOffset(u32);

impl NameOffset {
    /// Marks memory that is no function's.
    const GAP: Self = Self(u32::MAX);

    /// A name that the table does not store; `None` for an offset that is out of reach.
    pub(super) fn elsewhere(offset: u64) -> Option<Self> {
        u32::try_from(offset).ok().map(Self).filter(|offset| *offset != Self::GAP)
    }

    /// As it was given to [`Self::elsewhere`].
    pub(super) fn offset(self) -> u64 {
        u64::from(self.0)
    }
}

impl RawSymbol {
    fn own_end(&self) -> Option<u64> {
        match self.end {
            End::At(end) => Some(end),
            End::NextSymbolOr(_) => None,
        }
    }

    fn end_before(&self, next_start: Option<u64>) -> Option<u64> {
        match self.end {
            End::At(_) => None,
            End::NextSymbolOr(limit) => Some(next_start.map_or(limit, |next| next.min(limit))),
        }
    }
}

/// The first address after a symbol.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// The file gives its size.
    At(u64),
    /// The file gives no size: where the next symbol starts, but here at the latest.
    NextSymbolOr(u64),
}

#[derive(Default)]
pub(super) struct SymbolTableBuilder {
    symbols: Vec<RawSymbol>,
    /// NUL-terminated names, one after the other.
    names: Vec<u8>,
}

impl SymbolTableBuilder {
    /// Stores a name; `None` when the table is full (4 GiB) or the name has a NUL.
    pub(super) fn name(&mut self, parts: &[&[u8]]) -> Option<NameOffset> {
        let offset = NameOffset::elsewhere(self.names.len() as u64)?;
        if parts.iter().any(|part| part.contains(&0)) {
            return None;
        }
        parts.iter().for_each(|part| self.names.extend_from_slice(part));
        self.names.push(0);
        Some(offset)
    }

    pub(super) fn push(&mut self, symbol: RawSymbol) {
        self.symbols.push(symbol);
    }

    /// Symbols and gaps so far.
    pub(super) fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Ends the symbols before `start` that have no size of their own: something that is
    /// no function (data, the end of the text) starts there.
    pub(super) fn push_gap(&mut self, start: u64) {
        let name = NameOffset::GAP;
        self.push(RawSymbol { start, end: End::At(start), rank: u8::MAX, name });
    }

    pub(super) fn finish(mut self) -> SymbolTable {
        // Among equals the first name wins. In place: a stable sort takes half as much again.
        self.symbols.sort_unstable_by_key(|symbol| (symbol.start, symbol.rank, symbol.name));
        let ranges = disjoint(extents(&self.symbols));
        drop(self.symbols);
        SymbolTable { ranges, names: self.names.into_boxed_slice() }
    }
}

struct Extent {
    start: u64,
    end: u64,
    name: NameOffset,
}

/// Gives each symbol an end and keeps one of several that start together.
fn extents(sorted: &[RawSymbol]) -> impl Iterator<Item = Extent> {
    let mut groups = sorted.chunk_by(|a, b| a.start == b.start).peekable();
    iter::from_fn(move || {
        let group = groups.next()?;
        let next_start = groups.peek().and_then(|next| next.first()).map(|next| next.start);
        Some((group, next_start))
    })
    .filter_map(|(group, next_start)| {
        let first = group.first()?;
        // A sized alias says more than one without a size, and a longer one includes others.
        let sized = group.iter().filter_map(RawSymbol::own_end).max();
        let end = match sized.filter(|end| *end > first.start) {
            Some(end) => end,
            None => group.iter().filter_map(|symbol| symbol.end_before(next_start)).max()?,
        };
        let is_code = end > first.start && first.name != NameOffset::GAP;
        is_code.then_some(Extent { start: first.start, end, name: first.name })
    })
}

/// Cuts an outer range where an inner one begins and resumes it where that ends.
fn disjoint(sorted: impl Iterator<Item = Extent>) -> Box<[Range]> {
    let mut ranges = Vec::new();
    let mut emit = |start: u64, end: u64, name: NameOffset| {
        if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            ranges.push(Range { start, len, name });
        }
    };
    let mut open: Vec<Extent> = Vec::new();
    let mut cursor = 0;
    for extent in sorted {
        while let Some(outer) = open.last() {
            let end = outer.end.min(extent.start);
            emit(cursor, end, outer.name);
            cursor = cursor.max(end);
            if outer.end > extent.start {
                break;
            }
            open.pop();
        }
        cursor = extent.start;
        open.push(extent);
    }
    while let Some(outer) = open.pop() {
        emit(cursor, outer.end, outer.name);
        cursor = cursor.max(outer.end);
    }
    ranges.into_boxed_slice()
}

#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u32,
    name: NameOffset,
}

/// Disjoint named ranges in the order of their addresses.
#[derive(Default)]
pub(super) struct SymbolTable {
    ranges: Box<[Range]>,
    names: Box<[u8]>,
}

impl SymbolTable {
    /// Where the name of the symbol that `address` lies in is.
    pub(super) fn locate(&self, address: u64) -> Option<NameOffset> {
        let after = self.ranges.partition_point(|range| range.start <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (address - range.start < u64::from(range.len)).then_some(range.name)
    }

    /// The name of the symbol that `address` lies in, as bytes of unknown encoding.
    pub(super) fn lookup(&self, address: u64) -> Option<&[u8]> {
        let name = self.names.get(usize::try_from(self.locate(address)?.0).ok()?..)?;
        name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())
    }

    /// Whether `address` lies between the first and the last symbol.
    pub(super) fn spans(&self, address: u64) -> bool {
        let (Some(first), Some(last)) = (self.ranges.first(), self.ranges.last()) else {
            return false;
        };
        first.start <= address && address < last.start.saturating_add(u64::from(last.len))
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.ranges) + self.names.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Listed = (u64, Option<u64>, &'static str);

    fn table(symbols: &[Listed]) -> SymbolTable {
        let mut builder = SymbolTableBuilder::default();
        for (start, end, name) in symbols {
            let name = builder.name(&[name.as_bytes()]).unwrap();
            let end = end.map_or(End::NextSymbolOr(1000), End::At);
            builder.push(RawSymbol { start: *start, end, rank: 1, name });
        }
        builder.finish()
    }

    fn check(symbols: &[Listed], expected: &[(u64, Option<&str>)]) {
        let table = table(symbols);
        for (address, name) in expected {
            let found = table.lookup(*address).map(|name| str::from_utf8(name).unwrap());
            assert_eq!(found, *name, "address {address}");
        }
    }

    #[test]
    fn address_past_a_symbols_end_is_unresolved() {
        check(
            &[(10, Some(20), "a"), (30, Some(40), "b")],
            &[
                (9, None),
                (10, Some("a")),
                (19, Some("a")),
                (20, None),
                (29, None),
                (39, Some("b")),
                (40, None),
                (u64::MAX, None),
            ],
        );
    }

    #[test]
    fn symbol_without_size_ends_at_the_next_one_or_at_its_limit() {
        check(
            &[(10, None, "a"), (30, None, "b")],
            &[(10, Some("a")), (29, Some("a")), (30, Some("b")), (999, Some("b")), (1000, None)],
        );
    }

    #[test]
    fn outer_symbol_resumes_after_the_inner_one() {
        check(
            &[(10, Some(100), "outer"), (20, Some(30), "inner"), (25, Some(28), "innermost")],
            &[
                (19, Some("outer")),
                (20, Some("inner")),
                (25, Some("innermost")),
                (28, Some("inner")),
                (30, Some("outer")),
                (100, None),
            ],
        );
    }

    #[test]
    fn gap_ends_a_symbol_without_size() {
        let mut builder = SymbolTableBuilder::default();
        let name = builder.name(&[b"a"]).unwrap();
        builder.push(RawSymbol { start: 10, end: End::NextSymbolOr(u64::MAX), rank: 0, name });
        builder.push_gap(50);
        let table = builder.finish();
        assert_eq!(table.lookup(49), Some(b"a".as_slice()));
        assert_eq!(table.lookup(50), None);
    }

    #[test]
    fn alias_of_the_lowest_rank_is_kept() {
        let mut builder = SymbolTableBuilder::default();
        for (name, rank) in [("weak", 2), ("global", 0), ("local", 1)] {
            let name = builder.name(&[name.as_bytes()]).unwrap();
            builder.push(RawSymbol { start: 10, end: End::At(20), rank, name });
        }
        assert_eq!(builder.finish().lookup(15), Some(b"global".as_slice()));
    }
}
