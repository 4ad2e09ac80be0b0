//! What is found in this machine's own files.

use super::*;
use crate::process::{Mapping, ObjectCache, seed};

fn of_this_process() -> Mappings {
    let mut objects = ObjectCache::default();
    let this = seed(std::process::id(), &mut objects).expect("this process");
    let mut mappings = Mappings::default();
    for mapping in this.mappings {
        let _ = mappings.insert(mapping);
    }
    mappings
}

#[test]
fn functions_of_the_c_library_are_found_once_each() {
    let mappings = of_this_process();
    let mut cache = AllocatorCache::default();
    let found = cache.find(std::process::id(), &mappings).expect("it has malloc");
    let libc = mappings.iter().find_map(|mapping| match &mapping.backing {
        Backing::Object(object) if object.path.contains("libc.so") => Some(object),
        _ => None,
    });
    let Some(libc) = libc else { return };
    let functions = cache.in_file(libc).expect("it can be read");
    for function in &functions.functions {
        println!("{function:x?}");
        assert_eq!(function.allocator, Allocator::Glibc);
    }
    let named = |name: &str| functions.functions.iter().find(|function| function.name == name);
    for name in ["malloc", "calloc", "realloc", "posix_memalign"] {
        let function = named(name).unwrap_or_else(|| panic!("no {name}"));
        assert!(function.site.is_some(), "{function:?}");
    }
    let mut starts: Vec<_> =
        functions.functions.iter().map(|function| function.code.start).collect();
    starts.dedup();
    assert_eq!(starts.len(), functions.functions.len());
    assert!(found.code.contains(libc::malloc as *const () as u64));
    assert!(found.code.contains(libc::calloc as *const () as u64 + 1));
    assert!(!found.code.contains(libc::strdup as *const () as u64));
}

#[test]
fn files_that_were_tried_are_named() {
    let mappings = of_this_process();
    let mut vdso_only = Mappings::default();
    let error = AllocatorCache::default().find(7, &vdso_only).expect_err("nothing is there");
    assert!(
        error.to_string().starts_with("no allocator found in pid 7, tried no files"),
        "{error}"
    );
    let loader = mappings.iter().find(|mapping| mapping.path.contains("/ld-"));
    let loader: Mapping = loader.expect("it is dynamic").clone();
    let _ = vdso_only.insert(loader);
    let error = AllocatorCache::default().find(7, &vdso_only).expect_err("nothing is there");
    assert!(error.to_string().contains("/ld-"), "{error}");
    assert!(error.to_string().contains("malloc, calloc"), "{error}");
}
