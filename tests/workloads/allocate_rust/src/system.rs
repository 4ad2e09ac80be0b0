//! By the C library's allocator.

mod work;

fn main() {
    work::main();
}
