//! `everflame record --kind alloc` in modes that see each allocation.

mod window;
