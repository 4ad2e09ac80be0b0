//! The executable memory of one process.

use std::sync::Arc;

use super::ObjectCache;
use crate::object::{BuildId, ObjectFile};

/// A stretch of executable memory as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedMemory {
    /// Process id.
    pub pid: u32,
    /// First address.
    pub start_avma: u64,
    /// First address behind it.
    pub end_avma: u64,
    /// Offset in the file of the first byte.
    pub file_offset: u64,
    /// Path in the process's mount namespace, or a name such as `[vdso]`.
    pub path: String,
    /// The file's build id, where the kernel gives it.
    pub build_id: Option<BuildId>,
    /// ((major, minor), inode), where the kernel gives that instead.
    pub inode: Option<((u32, u32), u64)>,
}

/// What memory is made of.
#[derive(Clone, Debug)]
pub enum Backing {
    /// A file, the vDSO, or something opaque.
    Object(Arc<ObjectFile>),
    /// No file: code that the process generated.
    Anonymous,
}

/// A stretch of executable memory and what it is made of.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First address.
    pub start_avma: u64,
    /// First address behind it.
    pub end_avma: u64,
    /// Offset in the file of the first byte.
    pub file_offset: u64,
    /// What it is made of.
    pub backing: Backing,
    /// The path that the kernel gave.
    pub path: Arc<str>,
    /// When it was mapped, on CLOCK_MONOTONIC; 0 if that was before the agent.
    pub mapped_ns: u64,
}

impl Mapping {
    /// Finds or opens the file that this memory comes from.
    pub fn open(memory: MappedMemory, objects: &mut ObjectCache) -> Self {
        Self {
            start_avma: memory.start_avma,
            end_avma: memory.end_avma,
            file_offset: memory.file_offset,
            path: Arc::from(memory.path.as_str()),
            backing: objects.backing(&memory),
            mapped_ns: 0,
        }
    }

    /// The offset in the file of an address inside.
    pub fn offset_of(&self, avma: u64) -> u64 {
        (avma - self.start_avma).wrapping_add(self.file_offset)
    }
}

/// Executable mappings of one process, at most; a database or a browser has some hundred.
pub(super) const MAX_MAPPINGS: usize = 16 * 1024;

/// One is usual.
const MAX_JITDUMPS: usize = 8;

/// The executable mappings of a process, sorted by address, never overlapping.
#[derive(Clone, Debug, Default)]
pub struct Mappings {
    sorted: Vec<Mapping>,
    /// Files that were mapped to announce generated code, in this order.
    jitdumps: Vec<Arc<ObjectFile>>,
    newest_ns: u64,
}

/// What became of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// It is there now.
    Inserted,
    /// Nothing has changed: the same was there before.
    Known,
    /// There are too many.
    Refused,
}

impl Mappings {
    /// Adds a mapping. perf tells of no unmapping, so what it overlaps is gone by now: a
    /// mapping that is covered in part keeps the rest. A mapping that is only told of again,
    /// as when a runtime changes the protection of its code, changes nothing.
    pub fn insert(&mut self, mapping: Mapping) -> Insertion {
        if mapping.start_avma >= mapping.end_avma || self.shows_the_same(&mapping) {
            return Insertion::Known;
        }
        self.note_jitdump(&mapping);
        let mapped_ns = mapping.mapped_ns;
        let first = self.sorted.partition_point(|m| m.end_avma <= mapping.start_avma);
        let end = self.sorted.partition_point(|m| m.start_avma < mapping.end_avma);
        let mut replacement = Vec::with_capacity(3);
        if let Some(below) = self.sorted.get(first).filter(|m| m.start_avma < mapping.start_avma) {
            let mut below = below.clone();
            below.end_avma = mapping.start_avma;
            replacement.push(below);
        }
        let above = self.sorted[first..end].last().filter(|m| m.end_avma > mapping.end_avma);
        let above = above.map(|above| {
            let mut rest = above.clone();
            rest.file_offset = above.offset_of(mapping.end_avma);
            rest.start_avma = mapping.end_avma;
            rest
        });
        replacement.push(mapping);
        replacement.extend(above);
        // Splitting one mapping in two adds as well, so there may be one more than the limit.
        if first == end && self.sorted.len() >= MAX_MAPPINGS {
            return Insertion::Refused;
        }
        self.sorted.splice(first..end, replacement);
        self.newest_ns = self.newest_ns.max(mapped_ns);
        Insertion::Inserted
    }

    /// Whether one mapping shows all of this one already.
    fn shows_the_same(&self, mapping: &Mapping) -> bool {
        let Some(known) = self.find(mapping.start_avma) else { return false };
        known.end_avma >= mapping.end_avma
            && match (&known.backing, &mapping.backing) {
                (Backing::Anonymous, Backing::Anonymous) => known.path == mapping.path,
                (Backing::Object(known_object), Backing::Object(object)) => {
                    Arc::ptr_eq(known_object, object)
                        && known.offset_of(mapping.start_avma) == mapping.file_offset
                }
                _ => false,
            }
    }

    fn note_jitdump(&mut self, mapping: &Mapping) {
        if self.jitdumps.len() < MAX_JITDUMPS
            && is_jitdump(&mapping.path)
            && let Backing::Object(object) = &mapping.backing
            && !self.jitdumps.iter().any(|known| Arc::ptr_eq(known, object))
        {
            self.jitdumps.push(Arc::clone(object));
        }
    }

    /// The jitdump files that the process has mapped so far.
    pub fn jitdumps(&self) -> &[Arc<ObjectFile>] {
        &self.jitdumps
    }

    /// The mapping that an address lies in.
    pub fn find(&self, avma: u64) -> Option<&Mapping> {
        let at = self.sorted.partition_point(|m| m.end_avma <= avma);
        self.sorted.get(at).filter(|m| m.start_avma <= avma)
    }

    /// Those that begin at an address or below it, the nearest first.
    pub(super) fn at_or_below(&self, avma: u64) -> impl Iterator<Item = &Mapping> {
        let end = self.sorted.partition_point(|m| m.start_avma <= avma);
        self.sorted[..end].iter().rev()
    }

    /// In order of address.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.sorted.iter()
    }

    /// When memory was last mapped, on CLOCK_MONOTONIC.
    pub fn newest_ns(&self) -> u64 {
        self.newest_ns
    }

    /// Drops what does not overlap any of these ranges, which are sorted.
    pub fn retain_within(&mut self, ranges: &[(u64, u64)]) {
        self.sorted.retain(|mapping| {
            let at = ranges.partition_point(|(_, end)| *end <= mapping.start_avma);
            ranges.get(at).is_some_and(|(start, _)| *start < mapping.end_avma)
        });
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there are none, as in a kernel thread.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }
}

/// `perf` convention: a runtime maps a page of `jit-PID.dump` to announce it.
fn is_jitdump(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with("jit-") && name.ends_with(".dump"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start_avma: u64, end_avma: u64, file_offset: u64, path: &str) -> Mapping {
        Mapping {
            start_avma,
            end_avma,
            file_offset,
            backing: Backing::Anonymous,
            path: Arc::from(path),
            mapped_ns: 0,
        }
    }

    /// Inserts (start, end, offset, path) in order and compares what is left.
    fn check(inserted: &[(u64, u64, u64, &str)], expected: &[(u64, u64, u64, &str)]) {
        let mut mappings = Mappings::default();
        for &(start, end, offset, path) in inserted {
            mappings.insert(mapping(start, end, offset, path));
        }
        let left: Vec<_> =
            mappings.iter().map(|m| (m.start_avma, m.end_avma, m.file_offset, &*m.path)).collect();
        assert_eq!(left, expected);
    }

    #[test]
    fn mappings_sort_by_address() {
        check(&[(30, 40, 0, "b"), (10, 20, 0, "a")], &[(10, 20, 0, "a"), (30, 40, 0, "b")]);
    }

    #[test]
    fn newer_mapping_replaces_what_it_covers() {
        check(&[(10, 20, 0, "a"), (20, 30, 0, "b"), (10, 30, 5, "c")], &[(10, 30, 5, "c")]);
        check(&[(10, 20, 0, "a"), (10, 20, 7, "b")], &[(10, 20, 7, "b")]);
    }

    #[test]
    fn mapping_that_is_told_of_again_changes_nothing() {
        let mut mappings = Mappings::default();
        assert_eq!(mappings.insert(mapping(10, 20, 0, "a")), Insertion::Inserted);
        let again = Mapping { mapped_ns: 7, ..mapping(12, 20, 2, "a") };
        assert_eq!(mappings.insert(again), Insertion::Known);
        assert_eq!((mappings.len(), mappings.newest_ns()), (1, 0));
        let longer = Mapping { mapped_ns: 9, ..mapping(12, 21, 2, "a") };
        assert_eq!(mappings.insert(longer), Insertion::Inserted);
        assert_eq!((mappings.len(), mappings.newest_ns()), (2, 9));
    }

    #[test]
    fn partly_covered_mappings_keep_the_rest_with_its_offset() {
        check(
            &[(10, 40, 100, "a"), (20, 30, 0, "b")],
            &[(10, 20, 100, "a"), (20, 30, 0, "b"), (30, 40, 120, "a")],
        );
        check(
            &[(10, 20, 0, "a"), (20, 30, 50, "b"), (15, 25, 0, "c")],
            &[(10, 15, 0, "a"), (15, 25, 0, "c"), (25, 30, 55, "b")],
        );
    }

    #[test]
    fn empty_mappings_are_ignored() {
        check(&[(10, 10, 0, "a"), (20, 10, 0, "b")], &[]);
    }

    #[test]
    fn too_many_mappings_are_refused() {
        let mut mappings = Mappings::default();
        let page = |n: u64| mapping(n * 0x2000, n * 0x2000 + 0x1000, 0, "a");
        for n in 0..MAX_MAPPINGS as u64 {
            assert_eq!(mappings.insert(page(n)), Insertion::Inserted);
        }
        assert_eq!(mappings.insert(page(MAX_MAPPINGS as u64)), Insertion::Refused);
        let replacing = mapping(7 * 0x2000 - 1, 7 * 0x2000 + 0x1000, 0, "b");
        assert_eq!(mappings.insert(replacing), Insertion::Inserted, "it needs no room");
        assert_eq!(mappings.len(), MAX_MAPPINGS);
    }

    #[test]
    fn mappings_outside_of_given_ranges_are_dropped() {
        let mut mappings = Mappings::default();
        for start in [10, 20, 30, 40] {
            mappings.insert(mapping(start, start + 5, 0, "a"));
        }
        mappings.retain_within(&[(5, 10), (22, 23), (30, 60)]);
        let left: Vec<u64> = mappings.iter().map(|m| m.start_avma).collect();
        assert_eq!(left, [20, 30, 40]);
    }

    #[test]
    fn find_looks_inside_half_open_ranges() {
        let mut mappings = Mappings::default();
        mappings.insert(mapping(0x1000, 0x2000, 0x500, "a"));
        assert!(mappings.find(0xfff).is_none());
        assert_eq!(mappings.find(0x1000).map(|m| m.offset_of(0x1000)), Some(0x500));
        assert_eq!(mappings.find(0x1fff).map(|m| m.offset_of(0x1fff)), Some(0x14ff));
        assert!(mappings.find(0x2000).is_none());
    }

    #[test]
    fn jitdump_is_known_once_even_after_its_mapping_is_gone() {
        let object = Arc::new(ObjectFile {
            path: "/tmp/jit-7.dump".to_owned(),
            build_id: None,
            kind: crate::object::ObjectKind::Elf { file: None },
        });
        let mut mappings = Mappings::default();
        for (start, path) in [(10, "/tmp/jit-7.dump"), (30, "/tmp/jit-7.dump"), (50, "/bin/jit")] {
            let backing = Backing::Object(Arc::clone(&object));
            mappings.insert(Mapping { backing, ..mapping(start, start + 10, 0, path) });
        }
        mappings.insert(mapping(0, 100, 0, "other"));
        assert_eq!((mappings.len(), mappings.jitdumps().len()), (1, 1));
    }
}
