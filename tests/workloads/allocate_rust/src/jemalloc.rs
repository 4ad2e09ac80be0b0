//! By jemalloc, which is linked in.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

mod work;

fn main() {
    work::main();
}
