//! Whose allocator a process uses, by the libraries that it has mapped.

use everflame_agent_common::allocation::Allocator;

use super::Mappings;

/// How names of libraries begin, and whose allocator is in them. One that takes another one's place comes
/// before it.
const LIBRARIES: [(&str, Allocator); 7] = [
    ("libjemalloc", Allocator::Jemalloc),
    ("libtcmalloc", Allocator::Tcmalloc),
    ("libmimalloc", Allocator::Mimalloc),
    ("ld-musl", Allocator::Musl),
    ("libc.musl", Allocator::Musl),
    ("libc.so", Allocator::Glibc),
    ("libc-2", Allocator::Glibc),
];

/// The allocator of a process with these mappings. `None` if it is in none of the libraries that are
/// known.
pub fn allocator(mappings: &Mappings) -> Option<Allocator> {
    let has = |prefix: &str| {
        mappings.iter().any(|mapping| {
            mapping.path.rsplit('/').next().is_some_and(|name| name.starts_with(prefix))
        })
    };
    LIBRARIES.into_iter().find(|(prefix, _)| has(prefix)).map(|(_, allocator)| allocator)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Backing, Mapping};
    use super::*;

    fn check(paths: &[&str], expected: Option<Allocator>) {
        let mut mappings = Mappings::default();
        for (number, path) in (0..).zip(paths) {
            let (start_avma, end_avma) = (number * 0x1000, (number + 1) * 0x1000);
            mappings.insert(Mapping {
                start_avma,
                end_avma,
                file_offset: 0,
                backing: Backing::Anonymous,
                path: Arc::from(*path),
                mapped_ns: 0,
            });
        }
        assert_eq!(allocator(&mappings), expected);
    }

    #[test]
    fn library_that_replaces_malloc_wins_over_the_c_library() {
        check(&["/bin/app", "/lib/x86_64-linux-gnu/libc.so.6"], Some(Allocator::Glibc));
        check(&["/lib/libc.so.6", "/usr/lib/libjemalloc.so.2"], Some(Allocator::Jemalloc));
        check(&["/lib/ld-musl-x86_64.so.1"], Some(Allocator::Musl));
        check(&["/bin/app", "/lib/libcrypt.so.1"], None);
    }
}
