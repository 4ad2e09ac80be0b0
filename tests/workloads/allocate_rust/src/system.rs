//! By the C library's allocator.

include!("work.rs");
