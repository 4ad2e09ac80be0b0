//! What allocators call their functions.

use everflame_agent_common::allocation::{Allocator, SizeArgument};

/// What comes before the names of C where an allocator has names of its own.
const PREFIXES: [(&str, Allocator); 5] = [
    ("je_", Allocator::Jemalloc),
    // Of the crate tikv-jemallocator.
    ("_rjem_", Allocator::Jemalloc),
    ("tc_", Allocator::Tcmalloc),
    ("mi_", Allocator::Mimalloc),
    ("__libc_", Allocator::Glibc),
];

const C: [(&str, SizeArgument); 8] = [
    ("malloc", SizeArgument::First),
    ("calloc", SizeArgument::Product),
    ("realloc", SizeArgument::Second),
    ("aligned_alloc", SizeArgument::Second),
    ("memalign", SizeArgument::Second),
    ("posix_memalign", SizeArgument::Third),
    ("valloc", SizeArgument::First),
    ("pvalloc", SizeArgument::First),
];

/// Beyond those of C. jemalloc's come with and without a prefix.
const OWN: [(&str, SizeArgument, Allocator); 17] = [
    ("mallocx", SizeArgument::First, Allocator::Jemalloc),
    ("rallocx", SizeArgument::Second, Allocator::Jemalloc),
    ("je_mallocx", SizeArgument::First, Allocator::Jemalloc),
    ("je_rallocx", SizeArgument::Second, Allocator::Jemalloc),
    ("_rjem_mallocx", SizeArgument::First, Allocator::Jemalloc),
    ("_rjem_rallocx", SizeArgument::Second, Allocator::Jemalloc),
    ("mi_zalloc", SizeArgument::First, Allocator::Mimalloc),
    ("mi_malloc_small", SizeArgument::First, Allocator::Mimalloc),
    ("mi_zalloc_small", SizeArgument::First, Allocator::Mimalloc),
    ("mi_malloc_aligned", SizeArgument::First, Allocator::Mimalloc),
    ("mi_zalloc_aligned", SizeArgument::First, Allocator::Mimalloc),
    ("mi_realloc_aligned", SizeArgument::Second, Allocator::Mimalloc),
    ("mi_new", SizeArgument::First, Allocator::Mimalloc),
    ("mi_new_nothrow", SizeArgument::First, Allocator::Mimalloc),
    ("tc_new", SizeArgument::First, Allocator::Tcmalloc),
    ("tc_newarray", SizeArgument::First, Allocator::Tcmalloc),
    ("runtime.mallocgc", SizeArgument::FirstOfGo, Allocator::Go),
];

/// C++'s operators new. Only allocators that know it have their own; others' call `malloc`.
const OPERATORS_NEW: [&str; 8] = [
    "_Znwm",
    "_Znam",
    "_ZnwmRKSt9nothrow_t",
    "_ZnamRKSt9nothrow_t",
    "_ZnwmSt11align_val_t",
    "_ZnamSt11align_val_t",
    "_ZnwmSt11align_val_tRKSt9nothrow_t",
    "_ZnamSt11align_val_tRKSt9nothrow_t",
];

/// Functions that tell which allocator a file has where its names do not.
const MARKS: [(&str, Allocator); 6] = [
    ("mallctl", Allocator::Jemalloc),
    ("malloc_stats_print", Allocator::Jemalloc),
    ("tc_version", Allocator::Tcmalloc),
    ("TCMallocInternalMalloc", Allocator::Tcmalloc),
    ("mi_version", Allocator::Mimalloc),
    ("__libc_malloc", Allocator::Glibc),
];

/// A function that this agent itself preloads: its `malloc` goes on to another.
pub(super) const PRELOADED: &str = "everflame_alloc_sampled";

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// What to make of the arguments; `None` if the function allocates nothing.
    pub(super) size: Option<SizeArgument>,
    /// Whose it is, if the name says that.
    pub(super) allocator: Option<Allocator>,
    /// Whether it is an operator of C++.
    pub(super) is_operator: bool,
}

/// What a function's name says; `None` if it has nothing to do with allocators.
pub(super) fn read(name: &str) -> Option<Name> {
    let of = |size, allocator| Some(Name { size, allocator, is_operator: false });
    if let Some((_, size)) = C.iter().find(|(known, _)| *known == name) {
        return of(Some(*size), None);
    }
    if let Some((_, size, allocator)) = OWN.iter().find(|(known, ..)| *known == name) {
        return of(Some(*size), Some(*allocator));
    }
    for (prefix, allocator) in PREFIXES {
        let rest = name.strip_prefix(prefix);
        if let Some((_, size)) = C.iter().find(|(known, _)| Some(*known) == rest) {
            return of(Some(*size), Some(allocator));
        }
    }
    if OPERATORS_NEW.contains(&name) {
        return Some(Name { size: Some(SizeArgument::First), allocator: None, is_operator: true });
    }
    if let Some((_, allocator)) = MARKS.iter().find(|(known, _)| *known == name) {
        return of(None, Some(*allocator));
    }
    (name == PRELOADED).then_some(Name { size: None, allocator: None, is_operator: false })
}

/// Whether a name that begins like this may be one of those.
pub(super) fn may_begin(begin: [u8; 4]) -> bool {
    let c = C.iter().map(|(name, _)| *name);
    let own = OWN.iter().map(|(name, ..)| *name);
    let prefixes = PREFIXES.iter().map(|(name, _)| *name);
    let marks = MARKS.iter().map(|(name, _)| *name);
    c.chain(own).chain(prefixes).chain(marks).chain(["_Znw", "_Zna", PRELOADED]).any(|name| {
        let len = name.len().min(begin.len());
        name.as_bytes()[..len] == begin[..len]
    })
}

/// What is looked for, for people.
pub(super) const LOOKED_FOR: &str = "malloc, calloc, realloc, aligned_alloc, memalign, \
     posix_memalign, valloc and pvalloc, by themselves or after je_, _rjem_, tc_ or mi_, and \
     runtime.mallocgc";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_arguments_are() {
        let check = |name: &str, expected: Option<(Option<SizeArgument>, Option<Allocator>)>| {
            assert_eq!(read(name).map(|name| (name.size, name.allocator)), expected, "{name}");
            let begin = *name.as_bytes().first_chunk().expect("four bytes");
            assert!(expected.is_none() || may_begin(begin), "{name}");
        };
        check("malloc", Some((Some(SizeArgument::First), None)));
        check("__libc_calloc", Some((Some(SizeArgument::Product), Some(Allocator::Glibc))));
        check("_rjem_realloc", Some((Some(SizeArgument::Second), Some(Allocator::Jemalloc))));
        check("_rjem_mallocx", Some((Some(SizeArgument::First), Some(Allocator::Jemalloc))));
        check("mi_posix_memalign", Some((Some(SizeArgument::Third), Some(Allocator::Mimalloc))));
        check("runtime.mallocgc", Some((Some(SizeArgument::FirstOfGo), Some(Allocator::Go))));
        check("_ZnwmSt11align_val_t", Some((Some(SizeArgument::First), None)));
        check("mallctl", Some((None, Some(Allocator::Jemalloc))));
        check("malloc_usable_size", None);
        check("runtime.mallocinit", None);
        check("free", None);
    }
}
